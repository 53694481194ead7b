// What a connection holds of a request that Admission has let in.
#pragma once

#include <memory>

#include "server/http_answer.h"
#include "tenants/admission.h"

namespace millrace {

/// Reserves what it may cost, then answers. `admission` must outlive it.
std::unique_ptr<HttpAnswer> make_admitted_answer(Admission& admission, AdmittedCall call);

/// The same of a call with a key: whoever is to make the answer, it is told from its beginning.
std::unique_ptr<HttpAnswer> make_keyed_answer(Admission& admission, AdmittedCall call);

}  // namespace millrace
