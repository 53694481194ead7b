#include "simulate/simulation.h"

#include "simulate/protocol_sim.h"
#include "simulate/request_sim.h"

namespace millrace {

SimResult simulate(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options) {
  if (options.detail == SimDetail::protocol) return ProtocolSim(nodes, work, options).run();
  return RequestSim(nodes, work, options).run();
}

}  // namespace millrace
