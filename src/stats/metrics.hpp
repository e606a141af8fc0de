#pragma once

// All that the views show, and more, as Prometheus's text: for weir.metrics() and for the HTTP endpoint's
// /metrics.

#include <cstddef>

namespace weir
{

constexpr size_t kMetricsCapacity = 1 << 20; // 32 classes that all have waits to show take a quarter of it

// Reads shared memory alone, raises no error, and returns the length of the text.
size_t WriteMetrics(char *buffer, size_t capacity);

} // namespace weir
