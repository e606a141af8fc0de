#include "replicas/read_targets.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr uint32_t kBestWeight = 100;

bool MayServe(const ReplicaRow &row, const Quarantine &quarantine, const ReadWish &wish) noexcept
{
    if (!row.in_use || row.pid == 0 || !row.counts || row.replay_lsn == 0 || quarantine.on != 0)
        return false;
    if (wish.region != nullptr && strcmp(wish.region, row.region) != 0)
        return false;
    if (wish.max_lag_us < 0)
        return row.state == ReplicaState::kStreaming;
    return (row.state == ReplicaState::kStreaming || row.state == ReplicaState::kCatchup) && row.lag_known &&
           row.replay_lag_us <= wish.max_lag_us;
}

uint32_t WeightOf(int64_t lag_us, int64_t max_lag_us) noexcept
{
    constexpr double kSecondUs = 1e6;
    const auto lag = static_cast<double>(lag_us);
    double share = 1;
    if (max_lag_us > 0)
        share = 1 - lag / static_cast<double>(max_lag_us);
    else if (max_lag_us < 0)
        share = kSecondUs / (kSecondUs + lag);
    const auto weight = static_cast<uint32_t>(std::lround(share * kBestWeight));
    return std::clamp(weight, 1U, kBestWeight);
}

} // namespace

uint32_t FindReadTargets(const ReplicaRow (&rows)[kMaxReplicas],
                         const Quarantine (&quarantined)[kMaxReplicas], const ReadWish &wish,
                         ReadTarget (&to)[kMaxReplicas]) noexcept
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < kMaxReplicas; i++)
        if (MayServe(rows[i], quarantined[i], wish))
            to[count++] = {i, WeightOf(rows[i].replay_lag_us, wish.max_lag_us)};
    std::sort(to, to + count, [&rows](const ReadTarget &a, const ReadTarget &b) {
        const ReplicaRow &x = rows[a.row];
        const ReplicaRow &y = rows[b.row];
        if (x.replay_lag_us != y.replay_lag_us)
            return x.replay_lag_us < y.replay_lag_us;
        if (x.replay_lag_bytes != y.replay_lag_bytes)
            return x.replay_lag_bytes < y.replay_lag_bytes;
        return strcmp(x.application_name, y.application_name) < 0;
    });
    return count;
}

} // namespace weir
