#include "coalesce/opt_in.hpp"

#include "coalesce/lazy.hpp"
#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
}

namespace weir
{

bool nothing_opted_in = false;

namespace
{

constexpr char kConfigTable[] = "coalesced_table";
constexpr AttrNumber kRelationColumn = 1;

object_access_hook_type previous_object_access;

// This process's copy of the table. Not `list_known`: to be read again.
bool list_known = false;
Oid config_table = InvalidOid;
uint64_t versions = 0;
HTAB *opted_in = nullptr;   // TableFacts by relation: of tables that have opted in
HTAB *partitions = nullptr; // the same of partitions that rows were routed to

// ---- the list -----------------------------------------------------------------------------------

Oid FindConfigTable()
{
    const Oid schema = get_namespace_oid("weir", true);
    return OidIsValid(schema) ? get_relname_relid(kConfigTable, schema) : InvalidOid;
}

void Forget(TableFacts *facts)
{
    facts->known = false;
    bms_free(facts->fixed);
    facts->fixed = nullptr;
}

void ForgetAll(HTAB *tables)
{
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, tables);
    while (auto *facts = static_cast<TableFacts *>(hash_seq_search(&scan))) {
        Forget(facts);
        hash_search(tables, &facts->relation, HASH_REMOVE, nullptr);
    }
}

// One, or with InvalidOid all of them: to be learnt again.
void Doubt(HTAB *tables, Oid relation)
{
    if (tables == nullptr || hash_get_num_entries(tables) == 0)
        return;
    if (OidIsValid(relation)) {
        auto *facts = static_cast<TableFacts *>(hash_search(tables, &relation, HASH_FIND, nullptr));
        if (facts != nullptr)
            facts->known = false;
        return;
    }
    HASH_SEQ_STATUS scan;
    hash_seq_init(&scan, tables);
    while (auto *facts = static_cast<TableFacts *>(hash_seq_search(&scan)))
        facts->known = false;
}

// Without a catalog read: it may come at any time.
void OnRelationChange(Datum, Oid relation)
{
    if (!OidIsValid(relation) || relation == config_table || !OidIsValid(config_table)) {
        list_known = false;
        nothing_opted_in = false;
    }
    Doubt(opted_in, relation);
    Doubt(partitions, relation);
}

void PrepareCache()
{
    if (opted_in != nullptr)
        return;
    HASHCTL control = {};
    control.keysize = sizeof(Oid);
    control.entrysize = sizeof(TableFacts);
    control.hcxt = CacheMemoryContext;
    opted_in = hash_create("pg_weir coalesced tables", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    partitions = hash_create("pg_weir partitions", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    CacheRegisterRelcacheCallback(OnRelationChange, 0);
}

// Calls `f(tuple, config)` for each row of the configuration table that holds the relation, or any.
template <typename F> void ScanConfigTable(Oid only, LOCKMODE lock, F f)
{
    Relation config = table_open(config_table, lock);
    // No index, no snapshot of ours: a new catalog snapshot, which sees whatever is committed.
    SysScanDesc scan = systable_beginscan(config, InvalidOid, false, nullptr, 0, nullptr);
    HeapTuple tuple;
    while (HeapTupleIsValid(tuple = systable_getnext(scan))) {
        bool is_null;
        const Datum value = heap_getattr(tuple, kRelationColumn, RelationGetDescr(config), &is_null);
        if (!is_null && (!OidIsValid(only) || DatumGetObjectId(value) == only))
            f(config, tuple, DatumGetObjectId(value));
    }
    systable_endscan(scan);
    table_close(config, lock == AccessShareLock ? lock : NoLock);
}

void ReadList()
{
    PrepareCache();
    ForgetAll(opted_in);
    ForgetAll(partitions);
    // Before it is read: an invalidation that comes meanwhile makes it unknown again.
    list_known = true;
    config_table = FindConfigTable();
    if (OidIsValid(config_table))
        ScanConfigTable(InvalidOid, AccessShareLock, [](Relation, HeapTuple, Oid relation) {
            bool found;
            auto *facts = static_cast<TableFacts *>(hash_search(opted_in, &relation, HASH_ENTER, &found));
            if (!found) {
                facts->known = false;
                facts->fixed = nullptr;
            }
        });
    if (list_known)
        nothing_opted_in = hash_get_num_entries(opted_in) == 0;
}

// ---- what a table is like -----------------------------------------------------------------------

bool IsForeignKeyTrigger(const Trigger &trigger, int type)
{
    return trigger.tgisinternal && RI_FKey_trigger_type(trigger.tgfoid) == type && !trigger.tgdeferrable;
}

void JudgeTriggers(Relation relation, TableFacts *facts)
{
    const TriggerDesc *triggers = relation->trigdesc;
    for (int i = 0; triggers != nullptr && i < triggers->numtriggers; i++) {
        const Trigger &trigger = triggers->triggers[i];
        const bool referencing = IsForeignKeyTrigger(trigger, RI_TRIGGER_FK);
        const bool referenced = IsForeignKeyTrigger(trigger, RI_TRIGGER_PK);
        if (TRIGGER_FOR_INSERT(trigger.tgtype)) {
            if (!referencing)
                facts->insert = Decline::kTrigger;
        }
        // Neither side's columns are among those that a coalesced UPDATE may set.
        if (TRIGGER_FOR_UPDATE(trigger.tgtype) && !referencing && !referenced)
            facts->update = Decline::kTrigger;
        if (TRIGGER_FOR_DELETE(trigger.tgtype))
            facts->remove = Decline::kTrigger;
    }
}

void AddColumns(Bitmapset **to, Node *expressions)
{
    pull_varattnos(expressions, 1, to);
}

void JudgeIndexes(Relation relation, TableFacts *facts, Bitmapset **fixed)
{
    List *indexes = RelationGetIndexList(relation);
    ListCell *cell;
    foreach (cell, indexes) {
        Relation index = index_open(lfirst_oid(cell), AccessShareLock);
        const Form_pg_index form = index->rd_index;
        if (form->indisexclusion || !form->indimmediate)
            facts->insert = facts->update = facts->remove = Decline::kConstraint;
        if (form->indisunique) {
            for (int i = 0; i < form->indnatts; i++)
                if (form->indkey.values[i] != 0)
                    *fixed =
                        bms_add_member(*fixed, form->indkey.values[i] - FirstLowInvalidHeapAttributeNumber);
            AddColumns(fixed, reinterpret_cast<Node *>(RelationGetIndexExpressions(index)));
            AddColumns(fixed, reinterpret_cast<Node *>(RelationGetIndexPredicate(index)));
        }
        index_close(index, AccessShareLock);
    }
    list_free(indexes);

    foreach (cell, RelationGetFKeyList(relation)) {
        const auto *key = static_cast<ForeignKeyCacheInfo *>(lfirst(cell));
        for (int i = 0; i < key->nkeys; i++)
            *fixed = bms_add_member(*fixed, key->conkey[i] - FirstLowInvalidHeapAttributeNumber);
    }
}

// A worker evaluates these for an UPDATE, as the table's owner: they must mean the same for everybody.
bool ChecksAreImmutable(const TupleConstr *constraints)
{
    for (int i = 0; constraints != nullptr && i < constraints->num_check; i++) {
        Node *check = static_cast<Node *>(stringToNode(constraints->check[i].ccbin));
        if (contain_mutable_functions(check))
            return false;
    }
    return true;
}

// A worker computes stored ones for an UPDATE; virtual ones are part of what it would have to check.
bool GeneratedColumnsAreImmutable(Relation relation)
{
    const TupleDesc descriptor = RelationGetDescr(relation);
    if (HasVirtualColumns(descriptor->constr))
        return false;
    for (int i = 0; i < descriptor->natts; i++)
        if (TupleDescAttr(descriptor, i)->attgenerated != '\0' &&
            contain_mutable_functions(build_column_default(relation, i + 1)))
            return false;
    return true;
}

// Who sets a column sets those that are generated from it.
void AddSourcesOfGenerated(Relation relation, Bitmapset **fixed)
{
    const TupleDesc descriptor = RelationGetDescr(relation);
    for (int i = 0; i < descriptor->natts; i++)
        if (TupleDescAttr(descriptor, i)->attgenerated != '\0' &&
            bms_is_member(i + 1 - FirstLowInvalidHeapAttributeNumber, *fixed))
            AddColumns(fixed, build_column_default(relation, i + 1));
}

bool IsPartitioned(Relation relation)
{
    return relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
}

// A table or partition that rows can be written to; or a root that INSERTs are routed by.
bool IsPlainTable(Relation relation)
{
    const Form_pg_class form = relation->rd_rel;
    return form->relpersistence == RELPERSISTENCE_PERMANENT && !IsCatalogRelation(relation) &&
           (IsPartitioned(relation) ||
            (form->relkind == RELKIND_RELATION && relation->rd_tableam == GetHeapamTableAmRoutine() &&
             !form->relhassubclass));
}

TableStatistics *StatisticsOf(Oid relation)
{
    TableStatistics *tables = shared->coalescing.tables;
    TableStatistics *found = nullptr;
    LWLockAcquire(coalesce_lock, LW_EXCLUSIVE);
    for (uint32_t i = 0; i < kCoalescedTables && found == nullptr; i++) {
        if (tables[i].database.load() == MyDatabaseId && tables[i].relation.load() == relation)
            found = &tables[i];
        else if (tables[i].database.load() == 0 || i == kCoalescedTables - 1) {
            found = &tables[i];
            const bool last = i == kCoalescedTables - 1;
            found->relation.store(last ? 0 : relation);
            found->database.store(MyDatabaseId);
        }
    }
    LWLockRelease(coalesce_lock);
    return found;
}

void Judge(Relation relation, TableFacts *facts)
{
    Bitmapset *fixed = nullptr;
    facts->insert = facts->update = facts->remove = Decline::kNone;
    facts->version = ++versions;
    if (!IsPlainTable(relation))
        facts->insert = facts->update = facts->remove = Decline::kTable;
    else if (relation->rd_rel->relhasrules)
        facts->insert = facts->update = facts->remove = Decline::kTrigger;
    else {
        JudgeTriggers(relation, facts);
        JudgeIndexes(relation, facts, &fixed);
        const TupleConstr *constraints = RelationGetDescr(relation)->constr;
        if (!ChecksAreImmutable(constraints))
            facts->update = Decline::kConstraint;
        if (!GeneratedColumnsAreImmutable(relation))
            facts->update = Decline::kGenerated;
        AddSourcesOfGenerated(relation, &fixed);
        if (relation->rd_rel->relrowsecurity)
            facts->update = facts->remove = Decline::kRowSecurity;
        if (IsPartitioned(relation))
            facts->update = facts->remove = Decline::kTable;
    }
    const MemoryContext previous = MemoryContextSwitchTo(CacheMemoryContext);
    facts->fixed = bms_copy(fixed);
    MemoryContextSwitchTo(previous);
    bms_free(fixed);
}

void LearnFacts(Relation relation, TableFacts *facts)
{
    Judge(relation, facts);
    if (relation->rd_rel->relispartition) // it has become one
        facts->insert = facts->update = facts->remove = Decline::kTable;
    facts->statistics = StatisticsOf(RelationGetRelid(relation));
    facts->row_type = RowTypeOf(RelationGetDescr(relation));
    facts->partitioned = IsPartitioned(relation);
}

// ---- a table is dropped -------------------------------------------------------------------------

void OnObjectAccess(ObjectAccessType access, Oid class_id, Oid object, int column, void *argument)
{
    if (previous_object_access)
        previous_object_access(access, class_id, object, column, argument);
    if (access != OAT_DROP || class_id != RelationRelationId || column != 0 || shared == nullptr ||
        !IsTransactionState() || !OidIsValid(MyDatabaseId))
        return;
    if (!list_known)
        ReadList();
    if (nothing_opted_in || object == config_table || !OidIsValid(config_table) ||
        hash_search(opted_in, &object, HASH_FIND, nullptr) == nullptr)
        return;
    // The extension may go in the same command.
    if (!OidIsValid(FindConfigTable()))
        return;
    ScanConfigTable(object, RowExclusiveLock, [](Relation config, HeapTuple tuple, Oid) {
        simple_heap_delete(config, &tuple->t_self);
        CacheInvalidateRelcache(config);
    });
}

} // namespace

const TableFacts *FactsOf(Relation relation)
{
    if (!list_known)
        ReadList();
    if (nothing_opted_in)
        return nullptr;
    const Oid key = RelationGetRelid(relation);
    auto *facts = static_cast<TableFacts *>(hash_search(opted_in, &key, HASH_FIND, nullptr));
    if (facts == nullptr)
        return nullptr;
    if (!facts->known) {
        Forget(facts);
        facts->known = true; // an invalidation that comes meanwhile makes it unknown again
        LearnFacts(relation, facts);
    }
    return facts;
}

Decline JudgePartition(Relation partition)
{
    const Oid key = RelationGetRelid(partition);
    bool found;
    auto *facts = static_cast<TableFacts *>(hash_search(partitions, &key, HASH_ENTER, &found));
    if (!found) {
        facts->known = false;
        facts->fixed = nullptr;
        facts->statistics = nullptr;
    }
    if (!facts->known) {
        TableFacts judged = {};
        facts->known = true;
        facts->insert = Decline::kTable; // if an error ends this
        Judge(partition, &judged);
        facts->insert = judged.insert;
        bms_free(judged.fixed);
    }
    return facts->insert;
}

const TableFacts *FactsKnownOf(Oid relation)
{
    if (!list_known || nothing_opted_in)
        return nullptr;
    const auto *facts = static_cast<const TableFacts *>(hash_search(opted_in, &relation, HASH_FIND, nullptr));
    return facts != nullptr && facts->known ? facts : nullptr;
}

void InstallOptIn()
{
    previous_object_access = object_access_hook;
    object_access_hook = OnObjectAccess;
}

} // namespace weir

using namespace weir;

namespace
{

void RequireTable(Oid relation)
{
    const char kind = get_rel_relkind(relation);
    if (kind == '\0')
        ereport(ERROR,
                (errcode(ERRCODE_UNDEFINED_TABLE), errmsg("relation with OID %u does not exist", relation)));
    if ((kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE) ||
        get_rel_persistence(relation) != RELPERSISTENCE_PERMANENT || IsCatalogRelationOid(relation) ||
        get_rel_relispartition(relation))
        ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
                        errmsg("writes to \"%s\" cannot be coalesced", get_rel_name(relation)),
                        errdetail("Only those to permanent tables can be, and to partitioned ones as a "
                                  "whole, not to a partition.")));
}

// The row's table, if it still exists: nobody can have cached what is gone.
Oid TellOf(HeapTuple tuple, TupleDesc descriptor)
{
    bool is_null;
    const Datum value = heap_getattr(tuple, kRelationColumn, descriptor, &is_null);
    const Oid relation = is_null ? InvalidOid : DatumGetObjectId(value);
    if (OidIsValid(relation) && get_rel_relkind(relation) != '\0')
        CacheInvalidateRelcacheByRelid(relation);
    return relation;
}

} // namespace

// The trigger on weir.coalesced_table: before each row, and after TRUNCATE.
WEIR_SQL_FUNCTION(weir_coalesced_table_changed)
{
    if (!CALLED_AS_TRIGGER(fcinfo))
        ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
                        errmsg("weir.coalesced_table_changed() is a trigger")));
    const auto *trigger = reinterpret_cast<TriggerData *>(fcinfo->context);
    CacheInvalidateRelcache(trigger->tg_relation);
    if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
        return PointerGetDatum(nullptr);
    const TupleDesc descriptor = RelationGetDescr(trigger->tg_relation);
    HeapTuple result = trigger->tg_trigtuple;
    const Oid old_relation = TellOf(trigger->tg_trigtuple, descriptor);
    if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
        RequireTable(old_relation);
    if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event)) {
        result = trigger->tg_newtuple;
        RequireTable(TellOf(result, descriptor));
    }
    return PointerGetDatum(result);
}
