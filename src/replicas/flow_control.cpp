#include "replicas/flow_control.hpp"

#include <cmath>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr double kEngage = 0.5, kRelease = 0.25; // shares of the target
constexpr double kOthersSmoothS = 3;

// Index of the standby that comes `quorum`-th when they are sorted by `key`, smallest first; none if fewer
// take part.
template <typename Key>
uint32_t QuorumMember(const FlowStandby *standbys, const bool *listed, uint32_t count, uint32_t quorum,
                      Key key) noexcept
{
    bool taken[kMaxFlowStandbys] = {};
    uint32_t found = kMaxFlowStandbys;
    for (uint32_t k = 0; k < quorum; k++) {
        found = kMaxFlowStandbys;
        for (uint32_t i = 0; i < count; i++)
            if (listed[i] && standbys[i].Counts() && !taken[i] &&
                (found == kMaxFlowStandbys || key(standbys[i]) < key(standbys[found])))
                found = i;
        if (found == kMaxFlowStandbys)
            break;
        taken[found] = true;
    }
    return found;
}

} // namespace

void FlowController::Release() noexcept
{
    for (FlowLaneState &lane : lanes) {
        lane.engaged = false;
        lane.rate = 0;
        lane.calm_us = 0;
    }
    counting = 0;
    quorum_member = kMaxFlowStandbys;
    others_rate = others_raw = 0;
    updated_us = 0;
}

void FlowController::Shift(int64_t step_us) noexcept
{
    for (FlowLaneState &lane : lanes)
        if (lane.calm_us != 0)
            lane.calm_us += step_us;
    if (updated_us != 0)
        updated_us += step_us;
}

void FlowController::UpdateLane(uint32_t lane, FlowStandby *standbys, const bool *listed, uint32_t count,
                                const FlowTargets &targets, uint32_t quorum, int64_t now_us) noexcept
{
    FlowLaneState &state = lanes[lane];
    const double share = kLaneShares[lane];
    const double pressure = quorum_member == kMaxFlowStandbys ? 0 : standbys[quorum_member].pressure / share;
    if (pressure >= kRelease)
        state.calm_us = 0;
    else if (state.calm_us == 0)
        state.calm_us = now_us;
    if (!state.engaged && quorum_member != kMaxFlowStandbys &&
        standbys[quorum_member].warning / share >= kEngage) {
        state.engaged = true;
        state.engagements++;
    } else if (state.engaged && (quorum_member == kMaxFlowStandbys ||
                                 (state.calm_us != 0 && now_us - state.calm_us >= kReleaseUs)))
        state.engaged = false;
    state.rate = 0;
    if (!state.engaged)
        return;
    state.limiting = QuorumMember(standbys, listed, count, quorum, [&](const FlowStandby &standby) {
        return standby.AllowedRate(targets, share);
    });
    FlowStandby &limiting = standbys[state.limiting];
    const double floor = limiting.Floor(targets);
    const double rate = limiting.AllowedRate(targets, share) - others_rate;
    state.rate = rate > floor ? rate : floor;
    if (lane == static_cast<uint32_t>(FlowLane::kRegular)) {
        limiting.limiting = true;
        limiting.at_floor = rate <= floor;
    }
}

void FlowController::Update(FlowStandby *standbys, const bool *listed, uint32_t count,
                            const FlowTargets &targets, uint32_t quorum, const FlowSample &sample,
                            int64_t now_us) noexcept
{
    if (!targets.Any()) {
        Release();
        return;
    }
    if (count > kMaxFlowStandbys)
        count = kMaxFlowStandbys;
    if (!Engaged() || updated_us == 0)
        others_raw = 0;
    else if (now_us > updated_us) {
        const double seconds = static_cast<double>(now_us - updated_us) / 1e6;
        const double wal = static_cast<double>(sample.wal_bytes - last.wal_bytes);
        const double charged = static_cast<double>(sample.charged_bytes - last.charged_bytes);
        others_raw += ((wal - charged) / seconds - others_raw) * (1 - std::exp(-seconds / kOthersSmoothS));
    }
    others_rate = others_raw > 0 ? others_raw : 0;
    last = sample;
    updated_us = now_us;
    counting = 0;
    uint32_t given_up = 0; // these are behind, too
    for (uint32_t i = 0; i < count; i++) {
        standbys[i].limiting = standbys[i].at_floor = false;
        if (listed[i] && standbys[i].Counts())
            counting++;
        else if (listed[i] && standbys[i].connected)
            given_up++;
    }
    quorum = quorum > given_up ? quorum - given_up : 1;
    quorum_member = QuorumMember(standbys, listed, count, quorum,
                                 [](const FlowStandby &standby) { return -standby.pressure; });
    for (uint32_t lane = 0; lane < kFlowLanes; lane++)
        UpdateLane(lane, standbys, listed, count, targets, quorum, now_us);
}

} // namespace weir
