#include "stats/metrics_text.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr size_t kReserved = 256; // for what Finish() says
constexpr double kNoBound = -1;

constexpr uint32_t kFirstDurationBit = 9; // 512 us
constexpr uint32_t kLastDurationBit = 26; // 67 s
constexpr uint32_t kLastSizeBit = 12;     // 4095

} // namespace

MetricsText::MetricsText(char *buffer, size_t capacity) noexcept
    : buffer_(buffer), text_(buffer, capacity > kReserved ? capacity - kReserved : 0)
{
}

void MetricsText::Family(const char *name, const char *type, const char *help) noexcept
{
    const size_t began = text_.Length();
    for (const char *piece : {"# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n"})
        text_.Put(piece);
    if (text_.Full())
        text_.CutTo(began);
    family_ = name;
}

// Name and labels, with `le` as the last one if there is a bound.
void MetricsText::Head(const char *suffix, MetricLabels labels, double bound) noexcept
{
    text_.Put(family_);
    text_.Put(suffix);
    char between = '{';
    for (const MetricLabel &label : labels) {
        text_.PutChar(between);
        text_.Put(label.name);
        text_.Put("=\"");
        text_.PutLabel(label.value);
        text_.PutChar('"');
        between = ',';
    }
    if (bound != kNoBound) {
        text_.PutChar(between);
        text_.Put("le=\"");
        text_.PutReal(bound);
        text_.PutChar('"');
        between = ',';
    }
    text_.Put(between == ',' ? "} " : " ");
}

void MetricsText::CountLine(const char *suffix, MetricLabels labels, double bound, uint64_t value) noexcept
{
    Head(suffix, labels, bound);
    text_.PutCount(value);
    text_.PutChar('\n');
}

void MetricsText::Count(uint64_t value, MetricLabels labels) noexcept
{
    const size_t began = text_.Length();
    CountLine("", labels, kNoBound, value);
    if (text_.Full())
        text_.CutTo(began);
}

void MetricsText::Real(double value, MetricLabels labels) noexcept
{
    const size_t began = text_.Length();
    Head("", labels, kNoBound);
    text_.PutReal(value);
    text_.PutChar('\n');
    if (text_.Full())
        text_.CutTo(began);
}

// A bound is 2^bit: what is below it, and for whole numbers what is at most one less.
void MetricsText::Buckets(const HistogramSnapshot &snapshot, MetricLabels labels, uint32_t first_bit,
                          uint32_t last_bit, bool durations) noexcept
{
    const size_t began = text_.Length();
    uint64_t below = 0;
    uint32_t bucket = 0;
    for (uint32_t bit = first_bit; bit <= last_bit; bit++) {
        const uint64_t bound = 1ull << bit;
        for (; bucket < kHistogramBuckets && BucketLowUs(bucket) < bound; bucket++)
            below += snapshot.buckets[bucket];
        CountLine("_bucket", labels,
                  durations ? static_cast<double>(bound) / 1e6 : static_cast<double>(bound - 1), below);
    }
    for (; bucket < kHistogramBuckets; bucket++)
        below += snapshot.buckets[bucket];
    CountLine("_bucket", labels, __builtin_inf(), below);
    Head("_sum", labels, kNoBound);
    text_.PutReal(static_cast<double>(snapshot.Sum()) / (durations ? 1e6 : 1));
    text_.PutChar('\n');
    CountLine("_count", labels, kNoBound, below);
    if (text_.Full())
        text_.CutTo(began);
}

void MetricsText::Durations(const HistogramSnapshot &snapshot, MetricLabels labels) noexcept
{
    Buckets(snapshot, labels, kFirstDurationBit, kLastDurationBit, true);
}

void MetricsText::Sizes(const HistogramSnapshot &snapshot, MetricLabels labels) noexcept
{
    Buckets(snapshot, labels, 1, kLastSizeBit, false);
}

size_t MetricsText::Finish() noexcept
{
    const bool truncated = text_.Full();
    const size_t length = text_.Length();
    text_ = TextWriter(buffer_ + length, kReserved);
    Gauge("pg_weir_metrics_truncated", "1: not all metrics found room in the answer.");
    Count(truncated ? 1 : 0);
    return length + text_.Length();
}

} // namespace weir
