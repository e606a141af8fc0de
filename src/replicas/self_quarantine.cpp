#include "replicas/self_quarantine.hpp"

#include "admission/refusal.hpp"
#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "catalog/pg_authid.h"
#include "replication/walsender.h"
#include "utils/acl.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

double Seconds(int64_t us)
{
    return static_cast<double>(us) / USECS_PER_SEC;
}

QuarantineShared &Own()
{
    return shared->routing.own;
}

void LogBegin(int64_t lag_us)
{
    const bool enforced = CurrentMode() == Mode::kEnforce;
    ereport(
        LOG,
        (errmsg("pg_weir: this standby is in quarantine: its replay lag is %.1f s, weir.quarantine_lag is "
                "%.1f s",
                Seconds(lag_us), Seconds(Own().limit_us.load())),
         enforced
             ? errdetail("New connections are refused with SQLSTATE 57P03, but those of superusers, "
                         "replication and pg_monitor.")
             : errdetail("Nobody is refused: weir.mode is %s.", ModeName(shared->settings.mode.load()))));
}

void LogEnd(int64_t lag_us, int64_t now)
{
    const double lasted_s = Seconds(now - Own().since_us.load());
    if (shared->replicas.in_recovery.load() == 0)
        ereport(LOG, (errmsg("pg_weir: the quarantine of this server ended after %.1f s: it was promoted",
                             lasted_s)));
    else if (settings.quarantine_lag_ms == 0)
        ereport(LOG,
                (errmsg("pg_weir: the quarantine of this standby ended after %.1f s: weir.quarantine_lag "
                        "is 0",
                        lasted_s)));
    else
        ereport(LOG, (errmsg("pg_weir: the quarantine of this standby ended after %.1f s: its replay lag is "
                             "%.1f s",
                             lasted_s, Seconds(lag_us))));
}

QuarantineRule RuleFromSettings()
{
    return {settings.quarantine_lag_ms * INT64CONST(1000), settings.quarantine_hold_ms * INT64CONST(1000)};
}

void MindOwn(int64_t now)
{
    QuarantineShared &own = Own();
    const QuarantineRule rule = RuleFromSettings();
    const bool standby = shared->replicas.in_recovery.load() != 0;
    const int64_t lag_us = shared->replicas.own_lag_us.load();
    own.limit_us.store(rule.limit_us);
    own.hold_us.store(rule.hold_us);
    const bool changed = standby ? own.machine.Note(lag_us, now, rule) : own.machine.End();
    own.last_over_us.store(own.machine.last_over_us);
    if (!changed)
        return;
    const bool on = own.machine.on != 0;
    if (on)
        LogBegin(lag_us);
    else
        LogEnd(lag_us, now);
    own.since_us.store(now);
    own.changes.fetch_add(1);
    own.on.store(on ? 1 : 0);
}

// A row that has become another standby's begins anew.
void MindStandbys(int64_t now)
{
    RoutingShared &routing = shared->routing;
    const QuarantineRule rule = RuleFromSettings();
    LWLockAcquire(replica_lock, LW_EXCLUSIVE);
    for (uint32_t i = 0; i < kMaxReplicas; i++) {
        const ReplicaRow &row = shared->replicas.report.rows[i];
        if (!row.in_use || routing.serials[i] != row.serial)
            routing.of_standbys[i].End();
        routing.serials[i] = row.serial;
        if (row.in_use)
            routing.of_standbys[i].Note(row.replay_lag_us, now, rule);
    }
    LWLockRelease(replica_lock);
}

bool IsExempt(const char *name)
{
    if (am_walsender)
        return true;
    const Oid role = name != nullptr ? get_role_oid(name, true) : InvalidOid;
    return OidIsValid(role) && (superuser_arg(role) || has_privs_of_role(role, ROLE_PG_MONITOR) ||
                                MayUseReservedConnections(role));
}

// The sampler's last word, unless it is too old to decide by: then the server is an ordinary one.
bool IsQuarantined(int64_t now)
{
    return Own().on.load(std::memory_order_relaxed) != 0 && IsFresh(shared->replicas, now);
}

} // namespace

void MindQuarantines(int64_t now)
{
    MindOwn(now);
    MindStandbys(now);
}

bool RefusesNewSessions(int64_t now)
{
    return CurrentMode() == Mode::kEnforce && IsQuarantined(now);
}

void RefuseInQuarantine(const char *role)
{
    if (!IsQuarantined(GetCurrentTimestamp()) || IsExempt(role))
        return;
    Own().refused.fetch_add(1, std::memory_order_relaxed);
    if (CurrentMode() == Mode::kEnforce)
        RefuseQuarantined();
}

} // namespace weir
