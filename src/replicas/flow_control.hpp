#pragma once

// Flow control of writers: how many bytes of WAL a second they may write, so that the standbys that count
// keep within weir.max_replica_lag and weir.max_replica_lag_bytes. Called with every sample of lag, 10 a
// second.
//
//     delay  = backlog / capacity                    of what is written now: flow_standby.hpp
//     aim    = 0.75 * target                         so that a hiccup of replay does not exceed the target;
//              down to half of it where the rate of replay has fallen lately: FlowStandby::Aim
//     knee   = max(target / 2, 0.5 s)
//     rate   = capacity * 2 ^ ((aim - delay - max(delay - target, 0)) / knee), at most 8 times the capacity,
//              at least the floor: the larger of weir.throttle_floor and a 50th of the capacity
//     writers' rate = rate - what others write (autovacuum, superusers, padding), at least the floor
//
// At the aim writers may write what the standby replays, so that is where it settles, with the standby busy
// all the time: the controller costs no throughput. A knee beyond it they may write half; beyond the target
// it is halved twice as fast. With a bound in bytes the same is done with bytes, and the lower rate holds.
// Each standby that counts allows a rate; the weir.lag_quorum-th lowest is taken.
//
// It engages when the lag, or the delay if the lag itself is at least a fourth of the target, is half of the
// target, and lets go when the delay is below a fourth for kReleaseUs: in between it neither comes nor goes.
//
// Two lanes: classes of low weight have a fourth of the targets for theirs. They are slowed down first, and
// when they are the only ones that write they lose nothing but the room for bursts.
//
// Where this comes from: MongoDB's flow control has the form capacity * 0.5 ^ ((lag - threshold) / threshold)
// once a second (flow_control.cpp; there with the lag itself, which comes a lag too late); MySQL's group
// replication subtracts what was written too much, and never stops anybody; CockroachDB stops elastic work
// before regular work. test/unit/flow_control_test.cpp holds it against a simulated standby.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include "replicas/flow_standby.hpp"

namespace weir
{

constexpr uint32_t kMaxFlowStandbys = 64;

enum class FlowLane : uint32_t {
    kBatch,   // classes that weigh less than the heaviest one
    kRegular, // everybody else
};
constexpr uint32_t kFlowLanes = 2;
constexpr double kLaneShares[kFlowLanes] = {0.25, 1};

// Both only grow.
struct FlowSample {
    uint64_t wal_bytes;     // that this server wrote
    uint64_t charged_bytes; // of these, while the throttle is engaged, of those whom it rules
};

struct FlowLaneState {
    bool engaged;
    double rate;          // bytes per second; 0: no limit
    int64_t calm_us;      // since when the pressure is low; 0: it is not
    uint32_t limiting;    // index of the standby whose rate it is
    uint64_t engagements; // how often it began
};

// Of the sampler alone; all zero is a controller that has not begun.
struct FlowController {
    FlowLaneState lanes[kFlowLanes];
    double others_rate; // bytes per second, smoothed; while engaged
    double others_raw;  // the same, below zero when charges come late
    FlowSample last;
    uint32_t counting; // standbys
    uint32_t
        quorum_member; // index of the standby with the quorum-th highest pressure; kMaxFlowStandbys: none
    int64_t updated_us;

    // `standbys` have been sampled; those with `listed[i]` take part if they count.
    void Update(FlowStandby *standbys, const bool *listed, uint32_t count, const FlowTargets &targets,
                uint32_t quorum, const FlowSample &sample, int64_t now_us) noexcept;

    void Release() noexcept; // no targets, or not a primary

    void Shift(int64_t step_us) noexcept; // our clock was set

    bool Engaged() const noexcept { return lanes[0].engaged || lanes[1].engaged; }

  private:
    void UpdateLane(uint32_t lane, FlowStandby *standbys, const bool *listed, uint32_t count,
                    const FlowTargets &targets, uint32_t quorum, int64_t now_us) noexcept;
};

static_assert(std::is_trivially_copyable_v<FlowController>);

constexpr int64_t kReleaseUs = 5 * INT64_C(1000000);

} // namespace weir
