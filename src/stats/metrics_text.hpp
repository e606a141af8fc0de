#pragma once

// Metrics in Prometheus's text format, version 0.0.4: families of samples, each with a HELP and a TYPE line.
//
// What does not fit is left out by whole samples, and Finish() says so in a metric of its own: the text
// always parses.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <initializer_list>

#include "stats/histogram.hpp"
#include "stats/text_writer.hpp"

namespace weir
{

struct MetricLabel {
    const char *name;
    const char *value; // any text
};

using MetricLabels = std::initializer_list<MetricLabel>;

constexpr char kMetricsContentType[] = "text/plain; version=0.0.4; charset=utf-8";

class MetricsText
{
  public:
    MetricsText(char *buffer, size_t capacity) noexcept;

    // Begins a family. All its samples follow, before the next one begins. `name` must outlive them.
    void Gauge(const char *name, const char *help) noexcept { Family(name, "gauge", help); }
    void Counter(const char *name, const char *help) noexcept { Family(name, "counter", help); }
    void HistogramOf(const char *name, const char *help) noexcept { Family(name, "histogram", help); }

    void Count(uint64_t value, MetricLabels labels = {}) noexcept;
    void Real(double value, MetricLabels labels = {}) noexcept;
    void Seconds(int64_t us, MetricLabels labels = {}) noexcept
    {
        Real(static_cast<double>(us) / 1e6, labels);
    }

    // A histogram of durations: buckets from 0.5 ms to 67 s, each twice as long as the one before. Their
    // bounds are bounds of Histogram's, so nothing is estimated.
    void Durations(const HistogramSnapshot &snapshot, MetricLabels labels = {}) noexcept;

    // A histogram of numbers (how many were in a batch): up to 1, 3, 7, 15 ... 4095.
    void Sizes(const HistogramSnapshot &snapshot, MetricLabels labels = {}) noexcept;

    // Ends the text and returns its length.
    size_t Finish() noexcept;

  private:
    void Family(const char *name, const char *type, const char *help) noexcept;
    void Head(const char *suffix, MetricLabels labels, double bound) noexcept;
    void CountLine(const char *suffix, MetricLabels labels, double bound, uint64_t value) noexcept;
    void Buckets(const HistogramSnapshot &snapshot, MetricLabels labels, uint32_t first_bit,
                 uint32_t last_bit, bool durations) noexcept;

    char *buffer_;
    TextWriter text_;
    const char *family_ = "";
};

} // namespace weir
