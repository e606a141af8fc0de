#include "replicas/flow_standby.hpp"

#include <cmath>
#include <initializer_list>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr double kFastS = 1, kSlowS = 3; // of the capacity: the lower of two means
constexpr double kFloorSmoothS = 30;     // of what the floor is taken from
constexpr double kFloorShare = 0.02;     // of the capacity
constexpr double kLatelyS = 60;          // how long it is remembered that it was slow
constexpr int64_t kBusyLagUs = 250000;   // later than that it has a backlog, not only WAL on its way
constexpr int64_t kAhead = 8;            // the delay is taken for at most so many times the lag
constexpr double kSlowedDown = 0.7;
constexpr double kMinKneeS = 0.5;
constexpr double kMostHalvings = 10, kMostDoublings = 3;
constexpr int64_t kLongestDelayUs = 30 * 86400 * INT64_C(1000000);

double Smaller(double a, double b) noexcept
{
    return a < b ? a : b;
}
double Larger(double a, double b) noexcept
{
    return a > b ? a : b;
}

int64_t BusyLag(const FlowTargets &targets) noexcept
{
    return targets.lag_us > 0 && targets.lag_us / 4 < kBusyLagUs ? targets.lag_us / 4 : kBusyLagUs;
}

// The first seconds of all count alike (`smooth_s` is what was seen): there is nothing else to go by.
void Approach(double *mean, double value, double seconds, double smooth_s, bool may_fall) noexcept
{
    const double next = *mean + (value - *mean) * (1 - std::exp(-seconds / smooth_s));
    *mean = may_fall ? next : Larger(*mean, next);
}

// As a pressure.
double HopelessPressure(const FlowTargets &targets) noexcept
{
    if (targets.lag_us <= 0)
        return kHopeless;
    return Larger(kHopeless, static_cast<double>(kHopelessUs) / static_cast<double>(targets.lag_us));
}

// Halvings of the rate: how far beyond the aim, in knees of half a target, and beyond the target once more.
// Negative: below the aim.
double Excess(double value, double target, double aim, double least_knee) noexcept
{
    const double knee = Larger(target / 2, least_knee);
    return (value - aim * target + Larger(value - target, 0)) / knee;
}

} // namespace

const char *StandingName(Standing standing) noexcept
{
    switch (standing) {
    case Standing::kCounts:
        return "counts";
    case Standing::kReturning:
        return "returning";
    case Standing::kDisconnected:
        return "disconnected";
    case Standing::kStuck:
        return "stuck";
    case Standing::kHopeless:
        return "hopeless";
    case Standing::kNotHelped:
        return "not helped";
    }
    return "unknown";
}

bool FlowStandby::Sample(const StandbySample &sample, const FlowTargets &targets, int64_t now_us) noexcept
{
    const Standing before = standing;
    const bool known = seen;
    if (sample.connected) {
        lag_us = sample.lag_us;
        lag_bytes = sample.lag_bytes;
        Measure(sample, targets, now_us);
    }
    Judge(sample, targets, now_us);
    seen = true;
    connected = sample.connected;
    replay_lsn = sample.replay_lsn;
    sampled_us = now_us;
    return known && standing != before;
}

void FlowStandby::Shift(int64_t step_us) noexcept
{
    for (int64_t *at : {&sampled_us, &moved_us, &lost_us, &hopeless_us, &mark_us})
        if (*at != 0)
            *at += step_us;
}

// Capacity, delay and pressure.
void FlowStandby::Measure(const StandbySample &sample, const FlowTargets &targets, int64_t now_us) noexcept
{
    const bool is_busy = sample.lag_us >= BusyLag(targets) && sample.lag_bytes > 0;
    const bool continues = seen && connected && sample.replay_lsn >= replay_lsn && now_us > sampled_us;
    if (!continues || sample.replay_lsn != replay_lsn || sample.lag_bytes == 0)
        moved_us = now_us;
    if (continues) {
        const double seconds = static_cast<double>(now_us - sampled_us) / 1e6;
        const double rate = static_cast<double>(sample.replay_lsn - replay_lsn) / seconds;
        // It can do at least what it does; smoothed, because its messages come in steps.
        const bool measured = is_busy && busy;
        if (measured)
            proven_s = Smaller(proven_s + seconds, kSlowS);
        Approach(&fast, rate, seconds, measured ? Smaller(kFastS, proven_s) : kSlowS, measured);
        Approach(&slow, rate, seconds, measured ? proven_s : kSlowS, measured);
        // Taken for too slow it is kept busy with a smaller backlog; taken for too fast it is buried.
        capacity = Smaller(fast, slow);
        if (measured && proven_s >= kSlowS) {
            if (lowest <= 0 || slow < lowest)
                lowest = slow;
            Approach(&lowest, slow, seconds, kLatelyS, true);
        }
        floor_base += (capacity - floor_base) * (1 - std::exp(-seconds / kFloorSmoothS));
    }
    busy = is_busy;

    const double delay_s = static_cast<double>(sample.lag_bytes) / Larger(capacity, 1);
    delay_us = sample.lag_us;
    if (is_busy) {
        // Where little was ever replayed little is known: a standby that hiccups is not far behind.
        delay_us = delay_s < 1e9 ? static_cast<int64_t>(delay_s * 1e6) : kLongestDelayUs;
        if (delay_us > sample.lag_us * kAhead)
            delay_us = sample.lag_us * kAhead;
        if (delay_us > kLongestDelayUs)
            delay_us = kLongestDelayUs;
    }
    pressure = warning = 0;
    if (targets.lag_us > 0) {
        const auto target = static_cast<double>(targets.lag_us);
        // No one is slowed down for a delay that is only foreseen.
        const bool felt = sample.lag_us >= targets.lag_us / 4;
        pressure = static_cast<double>(felt ? delay_us : sample.lag_us) / target;
        warning = Larger(pressure, static_cast<double>(sample.lag_us) / target);
    }
    if (targets.lag_bytes > 0) {
        const double share = static_cast<double>(sample.lag_bytes) / static_cast<double>(targets.lag_bytes);
        pressure = Larger(pressure, share);
        warning = Larger(warning, share);
    }
}

// At the end of each grace period: what became of the lag in it. The next one begins then.
FlowStandby::Trend FlowStandby::Watch(const FlowTargets &targets, int64_t now_us) noexcept
{
    constexpr int64_t kJitterUs = 1100000; // of a lag that is only seen by the heartbeats
    Trend trend = Trend::kNotKnown;
    if (mark_us != 0) {
        lag_min_us = lag_us < lag_min_us ? lag_us : lag_min_us;
        lag_max_us = lag_us > lag_max_us ? lag_us : lag_max_us;
        mark_capacity = Larger(mark_capacity, capacity);
        const int64_t passed = now_us - mark_us;
        if (passed < targets.grace_us)
            return Trend::kNotKnown;
        const int64_t moved = lag_max_us - lag_min_us;
        if (moved <= kJitterUs || moved <= lag_min_us / 10)
            trend = Trend::kConstant;
        else
            trend = mark_delay_us - delay_us >= passed / 4 ? Trend::kBetter : Trend::kWorse;
    }
    mark_us = now_us;
    mark_delay_us = delay_us;
    if (trend != Trend::kConstant)
        mark_capacity = capacity; // else since the lag stands still
    lag_min_us = lag_max_us = lag_us;
    return trend;
}

void FlowStandby::JudgeCounting(const FlowTargets &targets, bool stands_still, int64_t now_us) noexcept
{
    if (stands_still) {
        standing = Standing::kStuck;
        return;
    }
    if (hopeless_us != 0 && now_us - hopeless_us >= targets.grace_us) {
        standing = Standing::kHopeless;
        return;
    }
    const bool late = targets.lag_us > 0 && lag_us > targets.lag_us + targets.lag_us / 10;
    if (!limiting || !late)
        mark_us = 0;
    if (!at_floor)
        failures = 0;
    if (mark_us == 0 && (!limiting || !late) && !at_floor)
        return;
    const double capacity_before = mark_capacity;
    const Trend trend = Watch(targets, now_us);
    if (trend == Trend::kWorse && at_floor)
        failures++;
    else if (trend == Trend::kBetter)
        failures = 0;
    // A lag that stays while writers are slowed down and the replay with them is no backlog.
    if (trend == Trend::kConstant && late && (at_floor || capacity < kSlowedDown * capacity_before))
        GiveUp(true);
    else if (failures >= 2)
        GiveUp(false);
}

bool FlowStandby::NearLeft() const noexcept
{
    return lag_us >= left_lag_us - left_lag_us / 4 && lag_us <= left_lag_us + left_lag_us / 2;
}

void FlowStandby::GiveUp(bool is_constant) noexcept
{
    standing = Standing::kNotHelped;
    constant = is_constant;
    left_lag_us = lag_us;
}

void FlowStandby::Judge(const StandbySample &sample, const FlowTargets &targets, int64_t now_us) noexcept
{
    const Standing before = standing;
    if (!sample.connected) {
        if (!seen || connected)
            lost_us = now_us;
        if (now_us - lost_us >= targets.grace_us)
            standing = Standing::kDisconnected;
        return;
    }
    const bool within = pressure <= 1;
    const bool stands_still = now_us - moved_us >= targets.grace_us;
    const double hopeless = HopelessPressure(targets);
    hopeless_us = pressure <= hopeless ? 0 : hopeless_us != 0 ? hopeless_us : now_us;
    if (!seen)
        standing = Standing::kReturning;

    switch (standing) {
    case Standing::kCounts:
        JudgeCounting(targets, stands_still, now_us);
        break;
    case Standing::kReturning:
        if (constant && NearLeft()) {
            standing = Standing::kNotHelped;
            break;
        }
        if (within && (!constant || lag_us < left_lag_us)) {
            standing = Standing::kCounts;
            break;
        }
        switch (Watch(targets, now_us)) {
        case Trend::kConstant:
            GiveUp(true);
            break;
        case Trend::kWorse:
            if (++failures >= 2 && pressure < hopeless / 2)
                standing = Standing::kCounts;
            break;
        case Trend::kBetter:
            failures = 0;
            break;
        case Trend::kNotKnown:
            break;
        }
        break;
    case Standing::kStuck:
        if (!stands_still)
            standing = Standing::kReturning;
        break;
    case Standing::kHopeless:
        if (pressure < hopeless / 2)
            standing = Standing::kCounts;
        break;
    case Standing::kNotHelped:
        if (constant ? !NearLeft() : lag_us < left_lag_us - left_lag_us / 4)
            standing = within ? Standing::kCounts : Standing::kReturning;
        else if (!constant && lag_us > left_lag_us)
            left_lag_us = lag_us;
        break;
    case Standing::kDisconnected:
        standing = within && !constant ? Standing::kCounts : Standing::kReturning;
        break;
    }
    if (standing == Standing::kCounts)
        constant = false;
    if (standing != before) {
        mark_us = 0;
        failures = 0;
    }
}

double FlowStandby::AllowedRate(const FlowTargets &targets, double share) const noexcept
{
    const double rate = Larger(capacity, 1);
    double halvings = -kMostDoublings;
    if (targets.lag_us > 0)
        halvings =
            Larger(halvings, Excess(static_cast<double>(delay_us) / 1e6,
                                    share * static_cast<double>(targets.lag_us) / 1e6, Aim(), kMinKneeS));
    if (targets.lag_bytes > 0)
        halvings =
            Larger(halvings, Excess(static_cast<double>(lag_bytes),
                                    share * static_cast<double>(targets.lag_bytes), kAim, kMinKneeS * rate));
    const double allowed = rate * std::exp2(-Smaller(halvings, kMostHalvings));
    return Larger(allowed, Floor(targets));
}

double FlowStandby::Aim() const noexcept
{
    // Not known yet: nothing is to be feared.
    if (lowest <= 0 || lowest >= kAim * slow)
        return kAim;
    return Larger(lowest / slow, kLeastAim);
}

double FlowStandby::Floor(const FlowTargets &targets) const noexcept
{
    return Larger(targets.floor, kFloorShare * floor_base);
}

} // namespace weir
