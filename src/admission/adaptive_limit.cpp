#include "admission/adaptive_limit.hpp"

#include <cmath>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr double kStartPerCore = 4;
constexpr double kRunnablePerCore = 3;
constexpr double kMostRunnablePerCore = 48;
constexpr double kHandOffCost = 300e-6; // seconds at which the target doubles: about 20 hand-offs' worth
constexpr double kLeastCpu = 10e-6;     // seconds; no transaction costs less
constexpr double kMostCpu = 10;         // seconds; more makes no difference
constexpr double kHoldersPerUseful = 1.25, kSpareHolders = 0.5;
constexpr double kWaitersPerQueue = 4; // of all but one
constexpr double kBlockedShare = 0.25; // of the holders, from which locks are what limits; or one of them
constexpr double kNamedFrom = 0.25;    // of its full weight, from which the bound by locks is the reason
constexpr double kGrowthUnderLocks = 0.125; // of the way, per interval
constexpr double kSmoothing = 0.5; // weight of a new interval; a late one has no more looks than others
constexpr double kUnprovenFactor = 2;
constexpr double kDriftPerSecond = 0.03;
constexpr double kBindingShare = 0.9;

double Clamp(double value, double low, double high) noexcept
{
    // Written so that a NaN becomes `low`.
    return value > low ? (value < high ? value : high) : low;
}

double Smooth(double old, double value) noexcept
{
    return old + kSmoothing * (value - old);
}

double Target(const AdaptiveState &state, const AdaptiveBounds &bounds) noexcept
{
    double per_core = kRunnablePerCore;
    if (state.cpu_per_transaction_s > 0)
        per_core *= 1 + kHandOffCost / state.cpu_per_transaction_s;
    return bounds.cores * Clamp(per_core, kRunnablePerCore, kMostRunnablePerCore);
}

void Take(AdaptiveState *state, const AdaptiveBounds &bounds, const AdaptiveSample &sample) noexcept
{
    const double active = Clamp(sample.active, 0, 1e6);
    const double blocked = Clamp(sample.lock_waiting + sample.contended, 0, active);
    const double running = Clamp(sample.running, 0, active);
    state->blocked = Smooth(state->blocked, blocked);
    const double useful = active - blocked;
    const bool fell = useful < state->useful / 2 && state->useful - useful > kStartPerCore * bounds.cores;
    state->useful = fell ? useful : Smooth(state->useful, useful);
    state->running = Smooth(state->running, running);
    state->queues = Smooth(state->queues, Clamp(sample.queues, 0, blocked));
    if (sample.finished > 0 && sample.interval_s > 0) {
        const double busy = running < bounds.cores ? running : bounds.cores;
        const double cpu =
            Clamp(busy * sample.interval_s / static_cast<double>(sample.finished), kLeastCpu, kMostCpu);
        state->cpu_per_transaction_s =
            state->cpu_per_transaction_s > 0 ? Smooth(state->cpu_per_transaction_s, cpu) : cpu;
    }
}

// What the signals ask for, and which of them.
double Wanted(const AdaptiveState &state, const AdaptiveBounds &bounds, AdaptiveReason *reason) noexcept
{
    const double useful = Clamp(state.useful, 0.5, 1e6);
    const double running = Clamp(state.running, useful / 1e4, 1e6);
    const double by_cpu = useful * Target(state, bounds) / running;
    const double more_queues = Clamp(state.queues - 1, 0, 1e6);
    const double by_locks = kHoldersPerUseful * useful + kSpareHolders + kWaitersPerQueue * more_queues;
    if (by_locks >= by_cpu) {
        *reason = AdaptiveReason::kCpu;
        return by_cpu;
    }
    // Little by little: with a step the limit would swing about it.
    const double holders = useful + state.blocked;
    const double weight = Clamp(state.blocked / Clamp(kBlockedShare * holders, 0.1, 1), 0, 1);
    *reason = weight >= kNamedFrom ? AdaptiveReason::kLocks : AdaptiveReason::kCpu;
    return by_locks + (1 - weight) * (by_cpu - by_locks);
}

double Step(double from, double wanted, AdaptiveReason *reason) noexcept
{
    if (wanted > from) {
        const double reached = wanted < 2 * from ? wanted : 2 * from;
        if (*reason == AdaptiveReason::kLocks)
            return from + kGrowthUnderLocks * (reached - from);
        *reason = AdaptiveReason::kRoom;
        return reached;
    }
    return wanted < from / 2 ? wanted : from + (wanted - from) / 2;
}

double Drift(double from, double active, double interval_s, const AdaptiveBounds &bounds) noexcept
{
    const double start = kStartPerCore * bounds.cores;
    const double proven = kUnprovenFactor * active;
    const double floor = proven > start ? proven : start;
    return from <= floor ? from : from + (floor - from) * Clamp(kDriftPerSecond * interval_s, 0, 1);
}

} // namespace

void AdaptiveReset(AdaptiveState *state, const AdaptiveBounds &bounds) noexcept
{
    *state = AdaptiveState();
    state->exact = Clamp(kStartPerCore * bounds.cores, bounds.min, bounds.max);
    state->limit = static_cast<uint32_t>(state->exact);
    state->reason = AdaptiveReason::kNotBinding;
}

uint32_t AdaptiveUpdate(AdaptiveState *state, const AdaptiveBounds &bounds,
                        const AdaptiveSample &sample) noexcept
{
    Take(state, bounds, sample);
    AdaptiveReason reason;
    const double wanted = Wanted(*state, bounds, &reason);
    const bool binding = sample.waiting >= 0.5 || sample.active >= kBindingShare * state->exact;
    const bool too_many = sample.active > wanted && sample.active > kStartPerCore * bounds.cores;
    double next;
    if (binding || too_many)
        next = Step(state->exact, wanted, &reason);
    else {
        next = Drift(state->exact, sample.active, sample.interval_s, bounds);
        reason = AdaptiveReason::kNotBinding;
    }
    const double bounded = Clamp(next, bounds.min, bounds.max);
    state->exact = bounded;
    state->limit = static_cast<uint32_t>(std::lround(bounded));
    state->reason =
        reason != AdaptiveReason::kNotBinding && bounded != next ? AdaptiveReason::kBounds : reason;
    return state->limit;
}

const char *AdaptiveReasonName(AdaptiveReason reason) noexcept
{
    switch (reason) {
    case AdaptiveReason::kNotBinding:
        return "not binding";
    case AdaptiveReason::kRoom:
        return "room";
    case AdaptiveReason::kCpu:
        return "cpu";
    case AdaptiveReason::kLocks:
        return "locks";
    case AdaptiveReason::kBounds:
        return "bounds";
    }
    return "unknown";
}

} // namespace weir
