#pragma once

// What the sampler knows of standbys, in shared memory: on a server that sends WAL a row per standby; on a
// standby a row of its own. Routing, waits for an LSN, health checks, metrics and the throttle read it here.
//
// Who writes: the sampler alone, once per weir.lag_sample_interval: the atomics at any time, the rest under
// `replica_lock`, exclusive, for some microseconds. Readers take the atomics as they are, and the lock,
// shared, to copy the report; in the sampler's own process (the flow controller) no lock is needed to read.
// A sampler that dies leaves its last numbers, which `sampled_us` dates: whoever decides by them asks
// IsFresh(). Its successor goes on with what is here. One that dies with the lock takes the server through a
// crash restart, or, if it was an ERROR, gives the lock back on its way out; no value here is only half
// written for longer than that.
//
// All times are in microseconds of TimestampTz, all LSNs are XLogRecPtr, bytes are bytes of WAL.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "admission/address.hpp"
#include "replicas/lag_clock.hpp"
#include "replicas/lag_windows.hpp"
#include "replicas/sample_ring.hpp"
#include "replicas/sender_silence.hpp"

namespace weir
{

constexpr uint32_t kMaxReplicas = 64;
constexpr uint32_t kReplicaNameSize = 64; // NAMEDATALEN
constexpr uint32_t kMaxPatternSize = 256;
constexpr uint32_t kHostSize = 256;

enum class ReplicaState : uint32_t {
    kUnknown,      // just seen, or nothing is known yet
    kStreaming,    // WAL flows
    kCatchup,      // WAL flows, from files: it has not caught up since it connected
    kArchive,      // a standby that restores from the archive, without a connection
    kPaused,       // a standby whose replay was paused
    kDisconnected, // was here, and is gone
};

const char *ReplicaStateName(ReplicaState state) noexcept;

// A standby, as its sender sees it.
struct ReplicaRow {
    bool in_use;
    uint32_t serial;                         // tells a standby from one that had its row before
    bool counts;                             // towards weir.max_replica_lag and weir.check_throttle()
    char application_name[kReplicaNameSize]; // as it is; the identity, with the address
    char region[kReplicaNameSize];           // before the "/" of application_name; empty: none
    char node[kReplicaNameSize];             // after it
    Address address;
    int32_t pid;           // its walsender; 0: disconnected
    int32_t sync_priority; // 0: asynchronous
    ReplicaState state;
    uint64_t sent_lsn, write_lsn, flush_lsn, replay_lsn; // 0: it has not said
    int64_t write_lag_bytes, flush_lag_bytes, replay_lag_bytes;
    int64_t write_lag_us, flush_lag_us, replay_lag_us;
    bool lag_known;                    // false: replay_lag_us is longer, it began before this server did
    LagSummary summaries[kLagWindows]; // of replay_lag_us: the last minute, 5 minutes, hour
    double replay_rate;                // bytes per second, smoothed
    int64_t catch_up_us;               // until it has caught up at the present rates; -1: never
    int64_t connected_us;              // since when it is in this state of connection
    int64_t reply_us;                  // its last message, by its own clock; 0: none
    int64_t heard_us;                  // when we saw that, by ours; 0: never
};

// This server as a standby.
struct OwnRow {
    bool in_recovery; // false: a primary; nothing else here means anything then
    ReplicaState state;
    uint32_t timeline; // of what is replayed
    uint64_t received_lsn, flushed_lsn, replay_lsn;
    uint64_t sender_lsn; // end of WAL on the sender, as last heard
    bool hears;          // whether it hears how far that is now
    int64_t write_lag_bytes, flush_lag_bytes, replay_lag_bytes;
    int64_t write_lag_us, flush_lag_us, replay_lag_us; // clock skew cancelled
    bool skew_known;
    int64_t skew_us;    // this clock minus the sender's, with the shortest transfer seen; 0: not known
    int64_t message_us; // when the sender was last heard; 0: never
    int64_t
        replayed_commit_us; // commit time of the last transaction replayed, by the primary's clock; 0: none
    double replay_rate;     // bytes per second, smoothed
    double receive_rate;
    int64_t catch_up_us; // as above
    LagSummary summaries[kLagWindows];
    char sender_host[kHostSize];
    int32_t sender_port;
};

// What is copied at one go: all that there is to know now.
struct ReplicaReport {
    double wal_rate; // bytes per second that this server makes, or receives
    OwnRow own;
    ReplicaRow rows[kMaxReplicas];
};

// What the sampler remembers of one standby; others look at the rows.
struct ReplicaMemory {
    LagWindows windows;
    RateMeter replay;
};

// Who sends us WAL: another one has another clock.
struct SenderIdentity {
    uint32_t timeline;
    int32_t port;
    char host[kHostSize];
};

struct SamplerMemory {
    LagClock clock;    // of end_lsn
    LagClock upstream; // of the sender's end of WAL, by this server's clock
    RateMeter wal;
    RateMeter received;
    SenderIdentity sender; // the last one
    SkewEstimate skew;     // against it
    SenderSilence silence;
    ReplicaMemory own;
    ReplicaMemory rows[kMaxReplicas];
    uint32_t next_serial;
    int64_t summarized_us;
};

struct ReplicasShared {
    std::atomic<uint32_t> sampler;      // its PGPROC number + 1; 0: no sampler runs
    std::atomic<int64_t> sampled_us;    // when it last looked
    std::atomic<int64_t> fresh_us;      // for so long that is fresh
    std::atomic<uint32_t> in_recovery;  // when it last looked
    std::atomic<uint32_t> role_changes; // promotions seen since the start
    std::atomic<int64_t> role_since_us; // when the present role began, or the server started
    std::atomic<uint32_t> standbys;     // connected now, with what receives WAL and replays nothing
    std::atomic<uint64_t> end_lsn;      // end of WAL here: flushed, or on a standby received

    // The own row's: 0 on a primary.
    std::atomic<uint64_t> own_replay_lsn;
    std::atomic<int64_t> own_lag_us;
    std::atomic<int64_t> own_lag_bytes;
    std::atomic<uint32_t> own_hears;
    std::atomic<uint32_t> own_state; // ReplicaState

    std::atomic<uint64_t> beats;  // heartbeats written
    std::atomic<int64_t> beat_us; // when the last one was

    ReplicaReport report;
    SampleRing history;
    SamplerMemory memory; // the sampler's alone
};

// Whether the sampler looked so lately that a decision may rest on it: it is due each
// weir.lag_sample_interval, and on a busy machine it may be late.
constexpr int64_t kLateUs = 5 * 1000000;

inline bool IsFresh(const ReplicasShared &replicas, int64_t now_us) noexcept
{
    return now_us - replicas.sampled_us.load(std::memory_order_relaxed) <=
           replicas.fresh_us.load(std::memory_order_relaxed);
}

// Splits "region/node"; without a "/" it is all node.
void SplitName(const char *name, char (&region)[kReplicaNameSize], char (&node)[kReplicaNameSize]) noexcept;

// Whether one of the patterns, separated by commas, matches the name: `*` and `?` as in weir.class_map.
bool NameIsListed(const char *patterns, const char *name) noexcept;

// Whether each pattern is shorter than kMaxPatternSize; longer ones match nothing.
bool PatternsAreShort(const char *patterns) noexcept;

// The row of that standby: the one it had, a free one, or that of the one longest gone; null: all are
// connected.
ReplicaRow *RowFor(ReplicasShared *replicas, const char *application_name, const Address &address) noexcept;

// Whether a standby of that name and address has connected again since this one was last heard: then its old
// walsender, which took a while to notice, leaves nothing behind.
bool IsReplaced(const ReplicasShared &replicas, const ReplicaRow &row) noexcept;

} // namespace weir
