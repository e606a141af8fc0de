#include "pg/snapshot.hpp"

extern "C" {
#include "access/xact.h"
#include "nodes/execnodes.h"
#include "tcop/pquery.h"
#include "utils/snapmgr.h"
}

namespace weir
{

namespace
{

bool DropHeldSnapshot(Portal portal)
{
    if (portal->holdSnapshot == nullptr)
        return false;
    UnregisterSnapshot(portal->holdSnapshot);
    portal->holdSnapshot = nullptr;
    return true;
}

} // namespace

DroppedSnapshot DropStatementSnapshot(QueryDesc *query_desc)
{
    DroppedSnapshot dropped = {};
    Portal portal = ActivePortal;

    InvalidateCatalogSnapshot(); // to find the session's class, catalogs may have been read
    if (IsolationUsesXactSnapshot() || portal == nullptr || portal->portalSnapshot != nullptr ||
        portal->strategy == PORTAL_UTIL_SELECT || query_desc->snapshot == nullptr || !ActiveSnapshotSet() ||
        query_desc->snapshot != GetActiveSnapshot() || query_desc->crosscheck_snapshot != InvalidSnapshot)
        return dropped;

    PopActiveSnapshot();
    if (ActiveSnapshotSet()) {
        // Somebody below holds one too: nothing would be gained. The QueryDesc's registration kept ours
        // alive.
        PushActiveSnapshot(query_desc->snapshot);
        return dropped;
    }
    UnregisterSnapshot(query_desc->snapshot);
    query_desc->snapshot = nullptr;
    dropped.held_by_portal = DropHeldSnapshot(portal);
    dropped.of_statement = true;
    return dropped;
}

void RetakeStatementSnapshot(const DroppedSnapshot &dropped, QueryDesc *query_desc)
{
    if (!dropped.of_statement)
        return;
    Snapshot snapshot = GetTransactionSnapshot();
    if (dropped.held_by_portal) {
        snapshot = RegisterSnapshot(snapshot);
        ActivePortal->holdSnapshot = snapshot;
    }
    // A copy, as ProcessQuery() pushes one: UpdateActiveSnapshotCommandId() insists on a snapshot nobody
    // registered.
    PushCopiedSnapshot(snapshot);
    query_desc->snapshot = RegisterSnapshot(GetActiveSnapshot());
}

DroppedSnapshot DropExecutionSnapshot(QueryDesc *query_desc)
{
    EState *estate = query_desc->estate;
    if (estate->es_snapshot != query_desc->snapshot || estate->es_crosscheck_snapshot != InvalidSnapshot)
        return {};
    const DroppedSnapshot dropped = DropStatementSnapshot(query_desc);
    if (dropped.of_statement) {
        UnregisterSnapshot(estate->es_snapshot);
        estate->es_snapshot = nullptr;
    }
    return dropped;
}

void RetakeExecutionSnapshot(const DroppedSnapshot &dropped, QueryDesc *query_desc)
{
    if (!dropped.of_statement)
        return;
    RetakeStatementSnapshot(dropped, query_desc);
    query_desc->estate->es_snapshot = RegisterSnapshot(query_desc->snapshot);
}

DroppedSnapshot DropUtilitySnapshot()
{
    DroppedSnapshot dropped = {};
    Portal portal = ActivePortal;

    InvalidateCatalogSnapshot();
    if (IsolationUsesXactSnapshot() || portal == nullptr || portal->portalSnapshot == nullptr ||
        !ActiveSnapshotSet() || portal->portalSnapshot != GetActiveSnapshot())
        return dropped;

    // Registered snapshots keep their horizon, so the portal's own must go too.
    portal->portalSnapshot = nullptr;
    PopActiveSnapshot();
    dropped.held_by_portal = DropHeldSnapshot(portal);
    dropped.of_utility = true;
    return dropped;
}

void RetakeUtilitySnapshot(const DroppedSnapshot &dropped)
{
    if (!dropped.of_utility)
        return;
    if (!dropped.held_by_portal) {
        EnsurePortalSnapshotExists();
        return;
    }
    // As PortalRunUtility() does for a portal that keeps its result.
    Portal portal = ActivePortal;
    portal->holdSnapshot = RegisterSnapshot(GetTransactionSnapshot());
    PushActiveSnapshotWithLevel(portal->holdSnapshot, portal->createLevel);
    portal->portalSnapshot = GetActiveSnapshot();
}

} // namespace weir
