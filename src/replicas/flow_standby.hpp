#pragma once

// One standby as the flow controller sees it: how fast it can replay, how late it will replay what is written
// now, and whether it counts.
//
// The lag in time says how late the WAL is that the standby replays now: it was written a lag ago, so as a
// signal to steer by it comes a lag too late, and a controller that follows it swings. What can be steered is
// the delay of the WAL that is written now: backlog / capacity, where the capacity is the rate of replay
// while the standby had a backlog all the time. It follows the writers' rate w at once, d(delay)/dt =
// w / capacity - 1, and when things are steady it equals the lag.
//
// When replay slows down, what is written already takes so much longer, whatever the writers do. So the aim
// leaves room for the lowest rate of the last minute or two: then the lag is at the target, not beyond it.
//
// Who does not count, so that writers do not wait for what their waiting cannot mend:
//  - Disconnected: for the grace period it counts as it was; then not any more.
//  - Stuck: it has a backlog and has replayed nothing for the grace period (paused, or a long conflict with a
//    query). When it moves, it is returning.
//  - Hopeless: for the grace period its delay was more than 30 times the target (and a minute). Counts again
//    below half of that.
//  - Not helped: writers were slowed down for it, and its lag stood where it was for the grace period while
//    its replay slowed down, too (recovery_min_apply_delay); or they were at the floor for twice that, and
//    its delay has not fallen (WAL that the throttle does not rule). When its lag has become another, it
//    is returning, or counts.
//  - Returning: it connected late, from a base backup or after it was away for longer than the grace period.
//    It may catch up by itself. Counts when it is within the target, or when it has not come nearer for twice
//    the grace period.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

namespace weir
{

// What is to be kept. All zero: nothing is.
struct FlowTargets {
    int64_t lag_us;    // weir.max_replica_lag; 0: none
    int64_t lag_bytes; // weir.max_replica_lag_bytes; 0: none
    int64_t grace_us;  // weir.lag_grace
    double floor;      // weir.throttle_floor, bytes per second

    bool Any() const noexcept { return lag_us > 0 || lag_bytes > 0; }
};

struct StandbySample {
    bool connected;
    uint64_t replay_lsn;
    int64_t lag_us;    // age of the oldest WAL that it has not replayed
    int64_t lag_bytes; // its backlog
};

enum class Standing : uint32_t {
    kCounts,
    kReturning,
    kDisconnected,
    kStuck,
    kHopeless,
    kNotHelped,
};

const char *StandingName(Standing standing) noexcept;

// Where it is to settle, as a share of the target: a maximum is not to be exceeded at each hiccup of replay;
// and where its rate varies much, down to that at which it still has enough to work on.
constexpr double kAim = 0.75, kLeastAim = 0.5;

constexpr double kHopeless = 30;                       // times the target
constexpr int64_t kHopelessUs = 60 * INT64_C(1000000); // and at least that

// Of the sampler alone; all zero is a standby that was not seen yet.
struct FlowStandby {
    uint32_t serial;   // of the row it belongs to
    Standing standing; // changes are for the log
    bool seen;
    bool connected;
    bool limiting;     // told by the controller: writers are slowed down for its sake
    bool at_floor;     // and are at the floor
    double capacity;   // bytes per second: the lower of the next two
    double fast, slow; // means of the rate while it was busy
    double floor_base; // the capacity of the last half minute
    double lowest;     // of the slow mean: falls with it, and follows it up in kLatelyS
    int64_t delay_us;  // of what is written now
    int64_t lag_us;    // as sampled
    int64_t lag_bytes; // as sampled
    double pressure;   // share of the target that is used up: 1 is at the target
    double warning; // the same, or the lag's own share if that is more: writers begin to be slowed down by it
    uint64_t replay_lsn; // last sample
    int64_t sampled_us;
    bool busy;
    double proven_s; // time it was seen busy, up to the smoothing time
    int64_t moved_us;
    int64_t lost_us;
    int64_t hopeless_us; // since when; 0: it is not
    int64_t mark_us;     // begin of the grace period that is watched now; 0: none is
    int64_t mark_delay_us;
    double mark_capacity;           // highest since the lag stands still
    int64_t lag_min_us, lag_max_us; // since the mark
    uint32_t failures;              // grace periods without progress, one after the other
    bool constant;       // it was found to be not helped because its lag stood still; till it counts
    int64_t left_lag_us; // its lag then; if it did not stand still, its highest since

    bool Counts() const noexcept { return standing == Standing::kCounts; }

    // Takes in a sample. Returns whether the standing changed.
    bool Sample(const StandbySample &sample, const FlowTargets &targets, int64_t now_us) noexcept;

    void Shift(int64_t step_us) noexcept; // our clock was set

    // Bytes per second that writers may write for this standby's sake, when `share` (0..1] of the targets is
    // theirs.
    double AllowedRate(const FlowTargets &targets, double share) const noexcept;

    // Where the delay is to settle, as a share of the target: kLeastAim to kAim.
    double Aim() const noexcept;

    // Below it writers are never held, for this standby.
    double Floor(const FlowTargets &targets) const noexcept;

  private:
    void Measure(const StandbySample &sample, const FlowTargets &targets, int64_t now_us) noexcept;
    void Judge(const StandbySample &sample, const FlowTargets &targets, int64_t now_us) noexcept;
    enum class Trend { kNotKnown, kBetter, kConstant, kWorse };
    Trend Watch(const FlowTargets &targets, int64_t now_us) noexcept;
    bool NearLeft() const noexcept;
    void GiveUp(bool is_constant) noexcept;
    void JudgeCounting(const FlowTargets &targets, bool stands_still, int64_t now_us) noexcept;
};

static_assert(std::is_trivially_copyable_v<FlowStandby>);

} // namespace weir
