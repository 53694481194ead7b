#include "cluster/simulate/simulation.h"

#include "cluster/simulate/protocol_sim.h"
#include "cluster/simulate/request_sim.h"

namespace millrace {

SimResult simulate(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options) {
  if (options.detail == SimDetail::protocol) return ProtocolSim(nodes, work, options).run();
  return RequestSim(nodes, work, options).run();
}

}  // namespace millrace
