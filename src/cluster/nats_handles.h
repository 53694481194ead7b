// What libnats gives and wants back, each destroyed with its holder.
#pragma once

#include <nats/nats.h>

#include <memory>

namespace millrace::nats {

template <typename T, void (*destroy)(T*)>
struct Destroy {
  void operator()(T* what) const { destroy(what); }
};
template <typename T, void (*destroy)(T*)>
using Handle = std::unique_ptr<T, Destroy<T, destroy>>;

using Options = Handle<natsOptions, natsOptions_Destroy>;
using Message = Handle<natsMsg, natsMsg_Destroy>;
using JetStream = Handle<jsCtx, jsCtx_Destroy>;
using StreamInfo = Handle<jsStreamInfo, jsStreamInfo_Destroy>;
using Ack = Handle<jsPubAck, jsPubAck_Destroy>;
using Store = Handle<kvStore, kvStore_Destroy>;
using StoreEntry = Handle<kvEntry, kvEntry_Destroy>;
using StoreWatcher = Handle<kvWatcher, kvWatcher_Destroy>;

}  // namespace millrace::nats
