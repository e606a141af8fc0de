#pragma once

// Metrics of replication: of each standby of this server, of this server as a standby, and of the flow
// control of writers.

#include "stats/metrics_text.hpp"

namespace weir
{

// As WriteMetrics().
void WriteReplicas(MetricsText *text);

} // namespace weir
