#pragma once

// The settings (GUCs), and the copy of them that decisions are taken from.
//
// A backend that waits does not process SIGHUP, so whatever decides is read from shared memory:
// RuntimeSettings, written by the postmaster at start and by the launcher after each reload. Only weir.class
// and weir.class_map are read from the session's own variables: they say who the session is.

#include "admission/class_map.hpp"
#include "admission/class_spec.hpp"
#include "pg/prelude.hpp"
#include "replicas/lsn_token.hpp"

extern "C" {
#include "datatype/timestamp.h"
}

namespace weir
{

enum class Mode : int { kOff, kObserve, kEnforce };

// In shared memory. Written by the launcher alone (before it exists, by the postmaster), each field
// atomically; readers may see a reload half done, which is as if it had come in two reloads.
struct RuntimeSettings {
    std::atomic<int> mode;
    std::atomic<int64_t> mode_since; // TimestampTz: transactions begun before it are not judged
    std::atomic<bool> superuser_bypass;
    std::atomic<bool> reject_as_fatal;
    std::atomic<uint32_t> generation; // moves on with every reload: sessions look up their class again
};

// This process's variables. The launcher's are the newest.
struct Settings {
    int mode;
    int max_active;
    int max_active_min;
    int max_active_max;
    int queue_timeout_ms;
    int queue_size;
    int idle_yield_ms;
    int stall_timeout_ms;
    bool superuser_bypass;
    int reject_as;
    int max_startups;
    int startup_rate;
    int startup_burst;
    int startup_timeout_ms;
    int startup_queue_size;
    int startup_share;
    int startup_sqlstate;
    int failed_login_rate;
    int log_min_startup_wait_ms;
    bool coalesce;
    int coalesce_workers;
    int coalesce_max_batch;
    int coalesce_max_delay_ms;
    int coalesce_lock_timeout_ms;
    int coalesce_memory_kb;
    int coalesce_ack;
    int coalesce_queue_size;
    int lag_sample_interval_ms;
    int heartbeat_interval_ms;
    int quarantine_lag_ms;
    int quarantine_hold_ms;
    int max_replica_lag_ms;
    int max_replica_lag_kb;
    int lag_quorum;
    int lag_grace_ms;
    bool throttle;
    bool throttle_bulk;
    int throttle_floor_kb;
    int throttle_max_wait_ms;
    int check_throttle_lag_ms;
    int submit_workers;
    int submit_key_retention_s;
    int http_port;
    char *http_listen_address;
    int lsn_wait_timeout_ms;
    char *classes;
    char *session_class;
    char *class_map;
    char *min_lsn;
    char *lag_replicas;
    char *region;

    // What check hooks made of the texts; null: empty. Owned by guc.c.
    const ClassSpecs *class_specs;
    const ClassMap *class_rules;
    const LsnToken *min_lsn_token;
};

extern Settings settings;

// Set by assign hooks when weir.class or weir.class_map changed in this process.
extern bool session_identity_changed;

// weir.min_lsn changed in this process, and was not seen replayed yet.
extern bool min_lsn_pending;

constexpr int kMaxCoalesceWorkers = 8;
constexpr int kMaxCoalesceBatch = 4096;
constexpr int kMaxSubmitWorkers = 16;

constexpr int kAckCommit = 0;
constexpr int kAckQueued = 1;
constexpr int kMaxCoalesceQueue = 65535;
constexpr int kMaxLsnWaitTimeoutMs = 3600000;

constexpr int kRejectAsError = 0;
constexpr int kRejectAsFatal = 1;

void DefineSettings();
const char *ModeName(int mode);

} // namespace weir
