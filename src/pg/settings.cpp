#include "pg/settings.hpp"

#include "http/listener.hpp"
#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "mb/pg_wchar.h"
}

namespace weir
{

Settings settings;
bool session_identity_changed = true;
bool min_lsn_pending = false;

namespace
{

constexpr int kMaxSessions = 262143; // MAX_BACKENDS

const config_enum_entry mode_options[] = {{"off", static_cast<int>(Mode::kOff), false},
                                          {"observe", static_cast<int>(Mode::kObserve), false},
                                          {"enforce", static_cast<int>(Mode::kEnforce), false},
                                          {nullptr, 0, false}};

const config_enum_entry reject_options[] = {
    {"error", kRejectAsError, false}, {"fatal", kRejectAsFatal, false}, {nullptr, 0, false}};

const config_enum_entry ack_options[] = {
    {"commit", kAckCommit, false}, {"queued", kAckQueued, false}, {nullptr, 0, false}};

const config_enum_entry sqlstate_options[] = {{"53300", ERRCODE_TOO_MANY_CONNECTIONS, false},
                                              {"57P03", ERRCODE_CANNOT_CONNECT_NOW, false},
                                              {nullptr, 0, false}};

// The text as the user wrote it, up to the mistake: where to look is clearer than a number alone.
void ReportPosition(const char *text, const ParseError &error)
{
    constexpr int kContext = 30;
    const int position = static_cast<int>(error.position);
    const int from = position > kContext ? position - kContext : 0;
    const int begin = from == 0 ? 0 : from + pg_mbcliplen(text + from, position - from, 0);
    GUC_check_errdetail("%s, at character %d, after \"%.*s\".", error.message, position + 1, position - begin,
                        text + begin);
}

template <typename Parsed>
bool CheckText(bool (*parse)(const char *, Parsed *, ParseError *) noexcept, const char *text, void **extra)
{
    auto *parsed = static_cast<Parsed *>(GucExtraAlloc(sizeof(Parsed)));
    if (parsed == nullptr)
        return false;
    ParseError error;
    if (!parse(text, parsed, &error)) {
        ReportPosition(text, error);
        *extra = parsed; // guc.c frees it either way
        return false;
    }
    *extra = parsed;
    return true;
}

bool CheckClasses(char **value, void **extra, GucSource)
{
    if (CheckText<ClassSpecs>(ParseClassSpecs, *value, extra))
        return true;
    GUC_check_errhint(
        "Write: name: key=value key=value; name: key=value. Keys: weight, reserved, max_active, "
        "queue_timeout, queue_size, max_startups, startup_rate, startup_burst.");
    return false;
}

void AssignClasses(const char *, void *extra)
{
    settings.class_specs = static_cast<const ClassSpecs *>(extra);
}

bool CheckClassMap(char **value, void **extra, GucSource)
{
    if (CheckText<ClassMap>(ParseClassMap, *value, extra))
        return true;
    GUC_check_errhint("Write: key=pattern, key=pattern => class; key=pattern => class. Keys: role, database, "
                      "application_name, address.");
    return false;
}

void AssignClassMap(const char *, void *extra)
{
    settings.class_rules = static_cast<const ClassMap *>(extra);
    session_identity_changed = true;
}

bool IsKnownClass(const char *name)
{
    if (name[0] == '\0' || strcmp(name, kDefaultClassName) == 0)
        return true;
    // This process may know a reload that the launcher does not yet, or the other way round.
    return (settings.class_specs != nullptr && FindClassSpec(*settings.class_specs, name) != nullptr) ||
           (shared != nullptr && gate.FindClass(name) != kMaxClasses);
}

// A role's or database's setting must not make its logins fail when the class is dropped later: only an
// interactive SET insists that the class exists.
bool CheckSessionClass(char **value, void **, GucSource source)
{
    char name[kClassNameSize];
    ParseError error;
    if (!ParseClassName(*value, name, &error)) {
        ReportPosition(*value, error);
        return false;
    }
    if (IsKnownClass(name))
        return true;
    if (source == PGC_S_SESSION) {
        GUC_check_errdetail("There is no workload class \"%s\".", name);
        GUC_check_errhint("Classes are listed in weir.classes, and shown by the view weir.stat_class.");
        return false;
    }
    if (source == PGC_S_TEST)
        ereport(NOTICE, (errmsg("there is no workload class \"%s\" now", name),
                         errhint("Until weir.classes lists it, such sessions are in class \"%s\".",
                                 kDefaultClassName)));
    return true;
}

void AssignSessionClass(const char *, void *)
{
    session_identity_changed = true;
}

bool CheckMinLsn(char **value, void **extra, GucSource)
{
    if (CheckText<LsnToken>(ParseLsnToken, *value, extra))
        return true;
    GUC_check_errhint("%s", kLsnTokenGrammar);
    return false;
}

void AssignMinLsn(const char *, void *extra)
{
    settings.min_lsn_token = static_cast<const LsnToken *>(extra);
    min_lsn_pending = settings.min_lsn_token != nullptr && settings.min_lsn_token->lsn != 0;
}

bool CheckReplicas(char **value, void **, GucSource)
{
    if (PatternsAreShort(*value))
        return true;
    GUC_check_errdetail("A pattern is longer than %u characters.", kMaxPatternSize - 1);
    return false;
}

void DefineLimits()
{
    DefineCustomIntVariable("weir.max_active", "Transactions of clients that may run at once.",
                            "-1: adaptive. 0: no limit. Superusers do not count (see weir.superuser_bypass).",
                            &settings.max_active, -1, -1, kMaxSessions, PGC_SIGHUP, 0, nullptr, nullptr,
                            nullptr);
    DefineCustomIntVariable("weir.max_active_min", "The adaptive limit never goes below this.", nullptr,
                            &settings.max_active_min, 2, 1, kMaxSessions, PGC_SIGHUP, 0, nullptr, nullptr,
                            nullptr);
    DefineCustomIntVariable("weir.max_active_max", "The adaptive limit never goes above this.",
                            "0: max_connections.", &settings.max_active_max, 0, 0, kMaxSessions, PGC_SIGHUP,
                            0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.queue_timeout", "Longest wait of a transaction for a slot.",
                            "Then it is refused with SQLSTATE 53300. 0: no bound of its own.",
                            &settings.queue_timeout_ms, 30000, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, nullptr,
                            nullptr, nullptr);
    DefineCustomIntVariable("weir.queue_size", "Most transactions that may wait for a slot.",
                            "Past it a new one is refused at once with SQLSTATE 53300. 0: max_connections.",
                            &settings.queue_size, 0, 0, kMaxSessions, PGC_SIGHUP, 0, nullptr, nullptr,
                            nullptr);
    DefineCustomIntVariable("weir.idle_yield",
                            "A transaction whose client has been silent this long lends its slot.",
                            "-1: never.", &settings.idle_yield_ms, 5, -1, 3600000, PGC_SIGHUP, GUC_UNIT_MS,
                            nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.stall_timeout",
        "When every slot is held by transactions that did nothing for this long, they lend their slots.",
        "Nothing: waiting for a lock, another process, a timer or the network. 0: never.",
        &settings.stall_timeout_ms, 2000, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr, nullptr);
}

void DefineStartupLimits()
{
    DefineCustomIntVariable(
        "weir.max_startups", "Connections that may be between authentication and their first query at once.",
        "-1: adaptive. 0: no limit. Superusers and replication do not count.", &settings.max_startups, -1, -1,
        kMaxSessions, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.startup_rate", "Connections admitted per second.",
                            "0: no such limit. With it weir.max_startups = -1 finds no rate of its own.",
                            &settings.startup_rate, 0, 0, kMaxSessions, PGC_SIGHUP, 0, nullptr, nullptr,
                            nullptr);
    DefineCustomIntVariable("weir.startup_burst",
                            "Connections admitted at once before weir.startup_rate binds.",
                            "0: a tenth of a second's worth.", &settings.startup_burst, 0, 0, kMaxSessions,
                            PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.startup_share",
        "Share of the processors that logins may have while established sessions keep them busy.",
        "In per cent. 100: they are never slowed down for others. Only with weir.max_startups = -1.",
        &settings.startup_share, 2, 1, 100, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.startup_timeout", "Longest wait of a connection for its startup.",
        "Then it is refused (weir.startup_sqlstate). Ends before authentication_timeout does; 0: only that.",
        &settings.startup_timeout_ms, 30000, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.startup_queue_size", "Most connections that may wait for their startup.",
                            "0: all of max_connections but those kept free for others.",
                            &settings.startup_queue_size, 0, 0, kMaxSessions, PGC_SIGHUP, 0, nullptr, nullptr,
                            nullptr);
}

void DefineStartups()
{
    DefineStartupLimits();
    DefineCustomEnumVariable(
        "weir.startup_sqlstate", "The SQLSTATE with which a connection is refused.",
        "57P03: libpq with several hosts then tries the next one; some pools drop their other connections.",
        &settings.startup_sqlstate, ERRCODE_TOO_MANY_CONNECTIONS, sqlstate_options, PGC_SIGHUP, 0, nullptr,
        nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.failed_login_rate",
        "Failed logins that one client address is told of per second; more are held back.",
        "0: none is held back.", &settings.failed_login_rate, 0, 0, 1000000, PGC_SIGHUP, 0, nullptr, nullptr,
        nullptr);
    DefineCustomIntVariable("weir.log_min_startup_wait",
                            "Logs each connection that waited at least this long for its startup.",
                            "-1: none.", &settings.log_min_startup_wait_ms, -1, -1, INT_MAX, PGC_SIGHUP,
                            GUC_UNIT_MS, nullptr, nullptr, nullptr);
}

void DefineClasses()
{
    DefineCustomStringVariable(
        "weir.classes", "Workload classes, and each one's share and limits.",
        "Example: interactive: weight=8 reserved=2; batch: max_active=4 queue_timeout=5min",
        &settings.classes, "", PGC_SIGHUP, 0, CheckClasses, AssignClasses, nullptr);
    DefineCustomStringVariable("weir.class_map", "Which class a session gets when weir.class is not set.",
                               "Example: application_name=report* => batch; role=etl => batch",
                               &settings.class_map, "", PGC_SIGHUP, 0, CheckClassMap, AssignClassMap,
                               nullptr);
    DefineCustomStringVariable(
        "weir.class", "The session's workload class.",
        "Set it by ALTER ROLE ... SET or ALTER DATABASE ... SET. Empty: weir.class_map decides.",
        &settings.session_class, "", PGC_SUSET, 0, CheckSessionClass, AssignSessionClass, nullptr);
}

void DefineCoalescing()
{
    DefineCustomBoolVariable(
        "weir.coalesce", "Sends this session's small writes on opted-in tables through coalescing workers.",
        "Tables opt in with weir.coalesce_table(). Only with weir.mode = enforce.", &settings.coalesce, true,
        PGC_USERSET, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.coalesce_workers", "Coalescing workers of each database that has opted-in tables.",
        "A table keeps to one of them. They count towards max_worker_processes.", &settings.coalesce_workers,
        1, 1, kMaxCoalesceWorkers, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.coalesce_max_batch", "Most requests in one batch.", nullptr,
                            &settings.coalesce_max_batch, 1000, 1, kMaxCoalesceBatch, PGC_SIGHUP, 0, nullptr,
                            nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.coalesce_max_delay", "How long a worker waits for more company before it begins a batch.",
        "0: what arrived while the last batch was being flushed is the next one.",
        &settings.coalesce_max_delay_ms, 0, 0, 1000, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.coalesce_lock_timeout", "Longest wait of a worker for a lock.",
                            "Then it gives the request back to its client, which waits for the lock itself.",
                            &settings.coalesce_lock_timeout_ms, 100, 1, 10000, PGC_SIGHUP, GUC_UNIT_MS,
                            nullptr, nullptr, nullptr);
    DefineCustomEnumVariable(
        "weir.coalesce_ack", "When this session's coalesced INSERTs are answered.",
        "commit: when they are durable. queued: when they are queued; a crash may lose them, and what then "
        "fails is in weir.coalesce_failures.",
        &settings.coalesce_ack, kAckCommit, ack_options, PGC_USERSET, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.coalesce_queue_size",
                            "Most INSERTs on the whole server that were answered and are not written yet.",
                            "When so many are, weir.coalesce_ack = queued answers as commit does. 8 kB each.",
                            &settings.coalesce_queue_size, 1024, 0, kMaxCoalesceQueue, PGC_POSTMASTER, 0,
                            nullptr, nullptr, nullptr);
}

// The largest request is a quarter.
void DefineLargeRequests()
{
    DefineCustomIntVariable("weir.coalesce_memory",
                            "Memory for coalesced statements that are larger than 8 kB, for all sessions.",
                            "Taken when it is first needed. A statement may use a quarter of it; what does "
                            "not fit is not coalesced. 0: none.",
                            &settings.coalesce_memory_kb, 16 * 1024, 0, 1024 * 1024, PGC_POSTMASTER,
                            GUC_UNIT_KB, nullptr, nullptr, nullptr);
}

void DefineSubmitting()
{
    DefineCustomIntVariable(
        "weir.submit_workers", "Workers for weir.submit() on the whole server.",
        "Each serves one role in one database. They count towards max_worker_processes. 0: none.",
        &settings.submit_workers, 2, 0, kMaxSubmitWorkers, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.submit_key_retention",
                            "How long weir.submit() remembers the outcome of a unit that was given a key.",
                            nullptr, &settings.submit_key_retention_s, 24 * 60 * 60, 1, INT_MAX, PGC_SIGHUP,
                            GUC_UNIT_S, nullptr, nullptr, nullptr);
}

bool CheckHttpAddress(char **value, void **, GucSource)
{
    if (IsHttpAddress(*value))
        return true;
    GUC_check_errdetail("\"%s\" is not a numeric address.", *value);
    GUC_check_errhint(
        "Write one address of this machine, such as 127.0.0.1 or ::1, or 0.0.0.0 or :: for all of them.");
    return false;
}

void DefineEndpoint()
{
    DefineCustomIntVariable("weir.http_port",
                            "Port on which health checks and metrics are answered over HTTP.",
                            "0: none. Its worker counts towards max_worker_processes.", &settings.http_port,
                            0, 0, 65535, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomStringVariable(
        "weir.http_listen_address", "Address on which health checks and metrics are answered.",
        "Whoever can reach it can read them: there is no authentication.", &settings.http_listen_address,
        "127.0.0.1", PGC_SIGHUP, 0, CheckHttpAddress, nullptr, nullptr);
}

void DefineReadYourWrites()
{
    DefineCustomStringVariable(
        "weir.min_lsn", "On a standby, this session's transactions begin when WAL is replayed up to here.",
        "An LSN, or LSN@timeline, as weir.last_commit_token() returns it on the primary. Empty: no wait.",
        &settings.min_lsn, "", PGC_USERSET, 0, CheckMinLsn, AssignMinLsn, nullptr);
    DefineCustomIntVariable("weir.lsn_wait_timeout", "Longest wait for weir.min_lsn to be replayed.",
                            "Then the statement fails with SQLSTATE 57014. 0: it does not wait.",
                            &settings.lsn_wait_timeout_ms, 1000, 0, kMaxLsnWaitTimeoutMs, PGC_USERSET,
                            GUC_UNIT_MS, nullptr, nullptr, nullptr);
}

void DefineReplicas()
{
    DefineCustomIntVariable("weir.lag_sample_interval", "How often replication lag is sampled.", nullptr,
                            &settings.lag_sample_interval_ms, 100, 10, 60000, PGC_SIGHUP, GUC_UNIT_MS,
                            nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.heartbeat_interval",
        "How often the primary commits an empty transaction while a standby is connected.",
        "So that lag in time is true when nothing else is written. 0: never.",
        &settings.heartbeat_interval_ms, 1000, 0, 3600000, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr,
        nullptr);
    DefineCustomStringVariable(
        "weir.lag_replicas",
        "Which standbys count for weir.max_replica_lag, by patterns of application_name.",
        "Patterns with * and ?, separated by commas. Example: eu/*, us/reporting", &settings.lag_replicas,
        "*", PGC_SIGHUP, 0, CheckReplicas, nullptr, nullptr);
    DefineCustomStringVariable("weir.region", "Where this server is: a label for routers.",
                               "Standbys tell theirs by application_name: region/node.", &settings.region, "",
                               PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
}

void DefineRouting()
{
    DefineCustomIntVariable(
        "weir.quarantine_lag", "Replay lag past which a standby refuses new connections.",
        "With SQLSTATE 57P03, never superusers, replication, pg_monitor. 0: never. Only with weir.mode = "
        "enforce.",
        &settings.quarantine_lag_ms, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.quarantine_hold",
        "How long lag must not have been past weir.quarantine_lag before new connections are taken again.",
        "Stalls of replay that are less than this apart are one incident.", &settings.quarantine_hold_ms,
        60000, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr, nullptr);
}

void DefineThrottleTargets()
{
    DefineCustomIntVariable(
        "weir.max_replica_lag", "Replay lag past which writers are slowed down.",
        "Writers are slowed down from half of it. Of little use below half a second. 0: never.",
        &settings.max_replica_lag_ms, 0, 0, 24 * 60 * 60 * 1000, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr,
        nullptr);
    DefineCustomIntVariable("weir.max_replica_lag_bytes",
                            "WAL that a standby has not replayed, past which writers are slowed down.",
                            "0: never.", &settings.max_replica_lag_kb, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_KB,
                            nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.lag_quorum",
                            "How many of the standbys that count must be behind before writers are slowed "
                            "down.",
                            nullptr, &settings.lag_quorum, 1, 1, 64, PGC_SIGHUP, 0, nullptr, nullptr,
                            nullptr);
    DefineCustomIntVariable(
        "weir.lag_grace", "How long a standby counts that is disconnected, stuck or hopelessly behind.",
        "Then writers are not slowed down for it any more, until it has recovered.", &settings.lag_grace_ms,
        10000, 100, 3600000, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr, nullptr);
}

void DefineThrottle()
{
    DefineThrottleTargets();
    DefineCustomBoolVariable("weir.throttle", "Whether this session's writes are slowed down by replica lag.",
                             "Superusers' never are.", &settings.throttle, true, PGC_SUSET, 0, nullptr,
                             nullptr, nullptr);
    DefineCustomBoolVariable(
        "weir.throttle_bulk", "Whether long statements and autovacuum are slowed down inside, too.",
        "Not while somebody waits for a lock that they hold. Off: statements wait before they begin, "
        "autovacuum never.",
        &settings.throttle_bulk, true, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "weir.throttle_floor", "WAL per second that writers may always write, all together.",
        "Or a 50th of what the standby replays, if that is more.", &settings.throttle_floor_kb, 64, 1,
        1024 * 1024, PGC_SIGHUP, GUC_UNIT_KB, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.throttle_max_wait", "Longest wait of a writer for replicas.",
                            "Then it writes all the same. 0: no bound.", &settings.throttle_max_wait_ms,
                            10000, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("weir.check_throttle_lag", "Replay lag from which weir.check_throttle() says no.",
                            "0: half of weir.max_replica_lag, or 5 s if there is none.",
                            &settings.check_throttle_lag_ms, 0, 0, 24 * 60 * 60 * 1000, PGC_SIGHUP,
                            GUC_UNIT_MS, nullptr, nullptr, nullptr);
}

} // namespace

const char *ModeName(int mode)
{
    for (const config_enum_entry &option : mode_options)
        if (option.name != nullptr && option.val == mode)
            return option.name;
    return "unknown";
}

void DefineSettings()
{
    DefineCustomEnumVariable("weir.mode", "What pg_weir does: nothing, count what it would do, or do it.",
                             nullptr, &settings.mode, static_cast<int>(Mode::kObserve), mode_options,
                             PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomBoolVariable(
        "weir.superuser_bypass", "Superusers, and members of pg_monitor reading weir's views, never wait.",
        nullptr, &settings.superuser_bypass, true, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomEnumVariable(
        "weir.reject_as", "How severe a refusal is.",
        "fatal ends the session: a client that ignores a failed BEGIN would go on in autocommit.",
        &settings.reject_as, kRejectAsError, reject_options, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineLimits();
    DefineStartups();
    DefineClasses();
    DefineCoalescing();
    DefineLargeRequests();
    DefineSubmitting();
    DefineEndpoint();
    DefineReadYourWrites();
    DefineReplicas();
    DefineRouting();
    DefineThrottle();
    MarkGUCPrefixReserved("weir");
}

} // namespace weir
