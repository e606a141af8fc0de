#include "stats/metrics_text.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace weir
{

namespace
{

constexpr char kNotTruncated[] =
    "# HELP pg_weir_metrics_truncated 1: not all metrics found room in the answer.\n"
    "# TYPE pg_weir_metrics_truncated gauge\n"
    "pg_weir_metrics_truncated 0\n";

template <typename Function> std::string Written(size_t capacity, Function function)
{
    std::vector<char> buffer(capacity);
    MetricsText text(buffer.data(), capacity);
    function(&text);
    return std::string(buffer.data(), text.Finish());
}

TEST(TextWriter, Numbers)
{
    char buffer[512];
    TextWriter writer(buffer, sizeof(buffer));
    auto put = [&](auto function) {
        writer.CutTo(0);
        function();
        return std::string(buffer, writer.Length());
    };
    EXPECT_EQ(put([&] { writer.PutCount(UINT64_MAX); }), "18446744073709551615");
    EXPECT_EQ(put([&] { writer.PutInt(INT64_MIN); }), "-9223372036854775808");
    EXPECT_EQ(put([&] { writer.PutReal(0.1); }), "0.1");
    EXPECT_EQ(put([&] { writer.PutReal(-1e300); }), "-1e+300");
    EXPECT_EQ(put([&] { writer.PutReal(NAN); }), "NaN");
    EXPECT_EQ(put([&] { writer.PutReal(HUGE_VAL); }), "+Inf");
    EXPECT_EQ(put([&] { writer.PutReal(-HUGE_VAL); }), "-Inf");
    EXPECT_EQ(put([&] { writer.PutReal(std::numeric_limits<double>::denorm_min()); }), "5e-324");
    EXPECT_EQ(put([&] { writer.PutLsn(0); }), "0/0");
    EXPECT_EQ(put([&] { writer.PutLsn(0x16B374D848); }), "16/B374D848");
    EXPECT_EQ(put([&] { writer.PutLsn(UINT64_MAX); }), "FFFFFFFF/FFFFFFFF");
    EXPECT_EQ(put([&] { writer.PutJson("a\"b\\c\n\x01/\xc3\xa9"); }), "a\\\"b\\\\c\\u000a\\u0001/\xc3\xa9");
    EXPECT_EQ(put([&] { writer.PutLabel("a\"b\\c\n"); }), "a\\\"b\\\\c\\n");
}

TEST(TextWriter, WhatDoesNotFitIsLeftOutWhole)
{
    char buffer[5] = {'#', '#', '#', '#', '#'};
    TextWriter writer(buffer, 4);
    writer.Put("abc");
    EXPECT_FALSE(writer.Full());
    writer.Put("de");
    EXPECT_TRUE(writer.Full());
    writer.Put("f"); // would fit, and would come after what is missing
    EXPECT_EQ(std::string(buffer, writer.Length()), "abc");
    EXPECT_EQ(buffer[3], '#');
    EXPECT_EQ(buffer[4], '#');
}

TEST(MetricsText, Samples)
{
    EXPECT_EQ(Written(4096,
                      [](MetricsText *text) {
                          text->Counter("a_total", "An a.");
                          text->Count(1);
                          text->Count(2, {{"x", "1"}, {"y", "q\"uote\n"}});
                          text->Gauge("b_seconds", "A b.");
                          text->Seconds(1500000);
                          text->Real(HUGE_VAL, {{"x", ""}});
                      }),
              std::string(
                  "# HELP a_total An a.\n# TYPE a_total counter\na_total 1\n"
                  "a_total{x=\"1\",y=\"q\\\"uote\\n\"} 2\n"
                  "# HELP b_seconds A b.\n# TYPE b_seconds gauge\nb_seconds 1.5\nb_seconds{x=\"\"} +Inf\n") +
                  kNotTruncated);
}

// The samples of a histogram, as (bound, cumulative count).
std::vector<std::pair<double, uint64_t>> BucketsOf(const std::string &text)
{
    std::vector<std::pair<double, uint64_t>> buckets;
    for (size_t at = 0; (at = text.find("le=\"", at)) != std::string::npos; at++) {
        const size_t end = text.find("\"} ", at);
        buckets.emplace_back(std::stod(text.substr(at + 4)), std::stoull(text.substr(end + 3)));
    }
    return buckets;
}

TEST(MetricsText, DurationsAreCountedExactly)
{
    Histogram histogram;
    histogram.Reset();
    const std::vector<int64_t> durations = {0,    1,       511,      512,      1023,
                                            1024, 1000000, 67108863, 67108864, 5000000000};
    double sum = 0;
    for (const int64_t us : durations) {
        histogram.Record(us);
        sum += static_cast<double>(us) / 1e6;
    }
    const HistogramSnapshot snapshot = histogram.Snapshot();
    const std::string text = Written(8192, [&](MetricsText *to) {
        to->HistogramOf("h", "An h.");
        to->Durations(snapshot, {{"class", "c"}});
    });
    const auto buckets = BucketsOf(text);
    ASSERT_EQ(buckets.size(), 19u);
    EXPECT_EQ(buckets[0].first, 0.000512);
    EXPECT_TRUE(std::isinf(buckets.back().first));
    for (const auto &[bound, count] : buckets) {
        uint64_t below = 0;
        for (const int64_t us : durations)
            below += static_cast<double>(us) / 1e6 < bound;
        EXPECT_EQ(count, below) << bound;
    }
    EXPECT_NE(text.find("h_count{class=\"c\"} 10\n"), std::string::npos) << text;
    const size_t at = text.find("h_sum{class=\"c\"} ");
    ASSERT_NE(at, std::string::npos);
    EXPECT_DOUBLE_EQ(std::stod(text.substr(at + 17)), sum);
}

TEST(MetricsText, SizesAreCountedExactly)
{
    Histogram histogram;
    histogram.Reset();
    for (const int64_t size : {1, 2, 3, 4, 1000, 4095, 4096})
        histogram.Record(size);
    const HistogramSnapshot snapshot = histogram.Snapshot();
    const auto buckets = BucketsOf(Written(8192, [&](MetricsText *to) {
        to->HistogramOf("h", "An h.");
        to->Sizes(snapshot);
    }));
    ASSERT_EQ(buckets.size(), 13u);
    EXPECT_EQ(buckets[0], std::make_pair(1.0, uint64_t{1}));
    EXPECT_EQ(buckets[1], std::make_pair(3.0, uint64_t{3}));
    EXPECT_EQ(buckets[2], std::make_pair(7.0, uint64_t{4}));
    EXPECT_EQ(buckets[8], std::make_pair(511.0, uint64_t{4}));
    EXPECT_EQ(buckets[9], std::make_pair(1023.0, uint64_t{5}));
    EXPECT_EQ(buckets[11], std::make_pair(4095.0, uint64_t{6}));
    EXPECT_EQ(buckets[12].second, 7u);
}

TEST(MetricsText, WhateverTheRoomItEndsWithAWholeLineAndSaysSo)
{
    Histogram histogram;
    histogram.Reset();
    histogram.Record(1000);
    const HistogramSnapshot snapshot = histogram.Snapshot();
    auto write = [&](MetricsText *text) {
        text->Counter("a_total", "An a.");
        text->Count(1, {{"x", "y"}});
        text->HistogramOf("h", "An h.");
        text->Durations(snapshot);
        text->Gauge("b", "A b.");
        text->Real(0.5);
    };
    const std::string whole = Written(8192, write);
    EXPECT_NE(whole.find("truncated 0\n"), std::string::npos);
    for (size_t capacity = 256; capacity < whole.size() + 256; capacity++) {
        const std::string text = Written(capacity, write);
        ASSERT_LE(text.size(), capacity);
        const size_t tail = text.find("# HELP pg_weir_metrics_truncated");
        ASSERT_NE(tail, std::string::npos);
        EXPECT_EQ(whole.compare(0, tail, text, 0, tail), 0);
        EXPECT_TRUE(tail == 0 || text[tail - 1] == '\n');
        // A histogram is there whole, or not at all.
        EXPECT_EQ(text.find("h_bucket") == std::string::npos, text.find("h_count") == std::string::npos);
        EXPECT_EQ(text.find("truncated 0\n") != std::string::npos,
                  tail == whole.size() - (sizeof(kNotTruncated) - 1));
    }
}

} // namespace

} // namespace weir
