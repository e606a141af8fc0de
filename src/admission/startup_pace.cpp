#include "admission/startup_pace.hpp"

#include <cmath>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr double kNobody = 0.5;       // established sessions at work, on average
constexpr double kBusyIdle = 0.1;     // of all processors
constexpr double kRoomyIdle = 0.2;    // of all processors
constexpr double kFall = 0.7;         // per interval
constexpr double kRise = 1.15;        // per interval
constexpr double kWholeLogin = 3.5;   // what a login costs, in units of what it sees of that
constexpr double kGuessedCost = 2e-3; // seconds; until the first was measured
constexpr double kDrainShare = 0.9;   // of the timeout
constexpr double kSmoothing = 0.3;    // weight of a new interval
constexpr double kInterval = 0.1;     // seconds: the one that is meant
constexpr double kMostSteps = 100;

double Smooth(double old, double value, double steps = 1) noexcept
{
    return old + (1 - std::pow(1 - kSmoothing, steps)) * (value - old);
}

// How many intervals this one is: the launcher looks more seldom while nobody is in the gate.
double StepsOf(const StartupSample &sample) noexcept
{
    const double steps = sample.interval_s / kInterval;
    return steps > 0 && steps < kMostSteps ? steps : steps > 0 ? kMostSteps : 1;
}

double Larger(double a, double b) noexcept
{
    return a > b ? a : b;
}

double Smaller(double a, double b) noexcept
{
    return a < b ? a : b;
}

double WholeCost(const StartupPace &pace) noexcept
{
    return pace.cost_s > 0 ? pace.cost_s * kWholeLogin : kGuessedCost * kWholeLogin;
}

void Take(StartupPace *pace, const StartupBounds &bounds, const StartupSample &sample, double steps) noexcept
{
    const double left = 1 - sample.established / bounds.cores;
    const double idle = sample.cpu_idle >= 0 ? sample.cpu_idle : Larger(left, 0);
    pace->established = Smooth(pace->established, sample.established, steps);
    pace->guarded = Smooth(pace->guarded, Smaller(sample.established, kCrowd), steps);
    pace->idle = Smooth(pace->idle, idle, steps);
    if (sample.finished > 0) {
        const double cost = sample.cpu_s / static_cast<double>(sample.finished);
        pace->cost_s = pace->cost_s > 0 ? Smooth(pace->cost_s, cost) : cost;
    }
    if (pace->queue_rate <= 0)
        pace->queue_rate = bounds.cores / WholeCost(*pace);
    if (sample.interval_s <= 0)
        return;
    const double served_rate = static_cast<double>(sample.admitted) / sample.interval_s;
    pace->served_rate = Smooth(pace->served_rate, served_rate, steps);
    // Not in quiet times: that nobody came does not mean that nobody could.
    if (sample.waiting > 0)
        pace->queue_rate = Smooth(pace->queue_rate, served_rate, steps);
}

// The rate below which nothing is gained, and which of the two reasons that has.
double Floor(const StartupPace &pace, const StartupBounds &bounds, double waiting,
             StartupReason *reason) noexcept
{
    const double share = bounds.share * bounds.cores / WholeCost(pace);
    const double drain = bounds.timeout_s > 0 ? waiting / (kDrainShare * bounds.timeout_s) : 0;
    *reason = drain > share ? StartupReason::kDrain : StartupReason::kShare;
    return Larger(Larger(share, drain), 0.1);
}

} // namespace

double StartupPaceUpdate(StartupPace *pace, const StartupBounds &bounds, const StartupSample &sample) noexcept
{
    const double steps = StepsOf(sample);
    Take(pace, bounds, sample, steps);
    const double most = 2 * bounds.cores / WholeCost(*pace);
    if (pace->guarded < kNobody) {
        pace->rate = 0;
        pace->reason = StartupReason::kFree;
        return 0;
    }
    StartupReason floor_reason;
    const double floor = Floor(*pace, bounds, sample.waiting, &floor_reason);
    const bool busy = pace->idle < kBusyIdle;
    if (pace->rate <= 0) {
        pace->reason = StartupReason::kFree;
        if (!busy)
            return 0;
        // From what was served: what nobody asked for need not be unlearned.
        pace->rate = pace->served_rate;
    }
    if (busy) {
        pace->rate *= std::pow(kFall, steps);
        pace->reason = StartupReason::kBusy;
    } else if (pace->idle > kRoomyIdle) {
        pace->rate *= std::pow(kRise, steps);
        pace->reason = StartupReason::kRoom;
    } else
        pace->reason = StartupReason::kSteady;
    if (pace->rate <= floor) {
        pace->rate = floor;
        pace->reason = floor_reason;
    }
    if (pace->rate > most) {
        pace->rate = 0;
        pace->reason = StartupReason::kFree;
    }
    return pace->rate;
}

const char *StartupReasonName(StartupReason reason) noexcept
{
    switch (reason) {
    case StartupReason::kFree:
        return "free";
    case StartupReason::kRoom:
        return "room";
    case StartupReason::kBusy:
        return "busy";
    case StartupReason::kSteady:
        return "steady";
    case StartupReason::kShare:
        return "share";
    case StartupReason::kDrain:
        return "drain";
    case StartupReason::kFixed:
        return "fixed";
    }
    return "unknown";
}

} // namespace weir
