#pragma once

// Metrics of replication: of each standby of this server, and of this server as a standby.

#include "stats/metrics_text.hpp"

namespace weir
{

// As WriteMetrics().
void WriteReplicas(MetricsText *text);

} // namespace weir
