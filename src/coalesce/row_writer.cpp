#include "coalesce/row_writer.hpp"

#include "coalesce/insert_rows.hpp"
#include "coalesce/large_payload.hpp"
#include "coalesce/lazy.hpp"
#include "coalesce/locked_rows.hpp"
#include "coalesce/shape.hpp"
#include "pg/compat.hpp"
#include "pg/settings.hpp"

extern "C" {
#include "access/detoast.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/partition.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "utils/expandeddatum.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

// ---- shapes ---------------------------------------------------------------------------------------

// A shape's trees, kept between batches: they depend on nothing but their text.
struct KeptShape {
    MemoryContext memory;
    uint64_t hash;
    uint32_t size;
    char *text;
    Shape shape;
};

constexpr uint32_t kKeptShapes = 64;
KeptShape kept_shapes[kKeptShapes];

const Shape &KeepShape(const RequestSlot &slot)
{
    KeptShape *kept = &kept_shapes[slot.shape_hash % kKeptShapes];
    if (kept->size == slot.shape_size && kept->hash == slot.shape_hash &&
        memcmp(kept->text, slot.payload + slot.shape_offset, slot.shape_size) == 0)
        return kept->shape;
    if (kept->memory == nullptr)
        kept->memory = AllocSetContextCreate(TopMemoryContext, "pg_weir shape", ALLOCSET_SMALL_SIZES);
    kept->size = 0;
    MemoryContextReset(kept->memory);
    const MemoryContext previous = MemoryContextSwitchTo(kept->memory);
    kept->text = static_cast<char *>(palloc(slot.shape_size));
    memcpy(kept->text, slot.payload + slot.shape_offset, slot.shape_size);
    kept->shape = ReadShape(slot);
    kept->hash = slot.shape_hash;
    MemoryContextSwitchTo(previous);
    kept->size = slot.shape_size;
    return kept->shape;
}

// Ready to run, for one batch.
struct CompiledShape {
    const RequestSlot *source;
    ExprState **expressions;
    int16_t *columns;
    int count;
    ExprState *conditions;
};

constexpr uint32_t kCompiledShapes = 16;

// ---- one table ------------------------------------------------------------------------------------

struct TableWriter {
    Batch *batch;
    Relation relation;
    EState *estate;
    ResultRelInfo *target;
    TupleTableSlot *old_row;
    TupleTableSlot *image;
    ExprState **checks;
    int check_count;
    bool has_parents; // its rows refer to others
    bool is_partition;
    ExprState **generated; // by column; null: not generated. Null: none is
    CompiledShape shapes[kCompiledShapes];
    uint32_t shape_count;
};

// Columns that the table's requests of this batch may set.
Bitmapset *UpdatedColumns(const Batch &batch, Relation relation, uint32_t from, uint32_t end)
{
    Bitmapset *columns = nullptr;
    const TupleDesc descriptor = RelationGetDescr(relation);
    for (int i = 0; i < descriptor->natts; i++)
        if (TupleDescAttr(descriptor, i)->attgenerated != '\0')
            columns = bms_add_member(columns, i + 1 - FirstLowInvalidHeapAttributeNumber);
    uint64_t last = 0;
    for (uint32_t i = from; i < end; i++) {
        const RequestSlot &slot = *batch.planned[i].slot;
        if (slot.kind != RequestKind::kUpdate || slot.shape_hash == last)
            continue;
        last = slot.shape_hash;
        ListCell *cell;
        foreach (cell, KeepShape(slot).columns)
            columns = bms_add_member(columns, lfirst_int(cell) - FirstLowInvalidHeapAttributeNumber);
    }
    return columns;
}

void PrepareChecks(TableWriter *w)
{
    const TupleConstr *constraints = RelationGetDescr(w->relation)->constr;
    w->check_count = constraints != nullptr ? constraints->num_check : 0;
    w->checks =
        static_cast<ExprState **>(palloc(sizeof(ExprState *) * static_cast<size_t>(w->check_count + 1)));
    for (int i = 0; i < w->check_count; i++)
        w->checks[i] =
            ExecPrepareExpr(static_cast<Expr *>(stringToNode(constraints->check[i].ccbin)), w->estate);
}

// An UPDATE computes them anew: of immutable expressions the same comes out if nothing changed.
void PrepareGenerated(TableWriter *w)
{
    const TupleDesc descriptor = RelationGetDescr(w->relation);
    if (descriptor->constr == nullptr || !descriptor->constr->has_generated_stored)
        return;
    w->generated = static_cast<ExprState **>(palloc0(sizeof(ExprState *) * descriptor->natts));
    for (int i = 0; i < descriptor->natts; i++)
        if (TupleDescAttr(descriptor, i)->attgenerated == ATTRIBUTE_GENERATED_STORED)
            w->generated[i] = ExecPrepareExpr(
                reinterpret_cast<Expr *>(build_column_default(w->relation, i + 1)), w->estate);
}

bool SomeSkipConflicts(const Batch &batch, uint32_t from, uint32_t end)
{
    for (uint32_t i = from; i < end; i++)
        if (batch.planned[i].slot->kind == RequestKind::kInsert && batch.planned[i].slot->skips_conflicts)
            return true;
    return false;
}

TableWriter *BeginTable(Batch *batch, Relation relation, uint32_t from, uint32_t end)
{
    auto *w = static_cast<TableWriter *>(palloc0(sizeof(TableWriter)));
    w->batch = batch;
    w->relation = relation;
    w->estate = ExecutorStateFor(relation, UpdatedColumns(*batch, relation, from, end));
    w->estate->es_snapshot = GetActiveSnapshot();
    w->estate->es_output_cid = GetCurrentCommandId(true);
    w->target = makeNode(ResultRelInfo);
    InitResultRelInfo(w->target, relation, 1, nullptr, 0);
    // As logical replication does: triggers find it there.
    w->estate->es_opened_result_relations = lappend(w->estate->es_opened_result_relations, w->target);
    ExecOpenIndices(w->target, batch->checks_unique || SomeSkipConflicts(*batch, from, end));
    w->has_parents = LookAtParents(relation);
    AfterTriggerBeginQuery();
    return w;
}

void EndTable(TableWriter *w)
{
    AfterTriggerEndQuery(w->estate);
    ExecCloseIndices(w->target);
    ExecResetTupleTable(w->estate->es_tupleTable, false);
    w->estate->es_snapshot = nullptr; // ours, not registered by it
    FreeExecutorState(w->estate);
}

bool IsLeftOut(const Batch &batch, uint32_t i)
{
    return batch.EntryOf(i).give_back != GiveBack::kNone;
}

void LeaveOut(Batch *batch, uint32_t i, GiveBack why)
{
    batch->EntryOf(i).give_back = why;
}

void Blame(Batch *batch, uint32_t i, uint32_t count)
{
    batch->culprit = i;
    batch->culprits = count;
}

// ---- inserts --------------------------------------------------------------------------------------

constexpr uint32_t kRowsAtOnce = 1000; // as COPY

struct Rows {
    uint32_t count;
    TupleTableSlot *slots[kRowsAtOnce];
    uint32_t owners[kRowsAtOnce]; // of batch->planned
};

// Foreign keys are checked for each request by itself: whose check fails, or has to wait for a lock, is known
// then.
void CheckParents(TableWriter *w, TupleTableSlot **rows, uint32_t count)
{
    if (!w->has_parents)
        return;
    NoParents();
    for (uint32_t i = 0; i < count; i++)
        NoteParents(rows[i]);
    AfterTriggerEndQuery(w->estate);
    AfterTriggerBeginQuery();
    NoParents();
}

void FlushRows(TableWriter *w, Rows *rows)
{
    if (rows->count == 0)
        return;
    Blame(w->batch, 0, 0);
    table_multi_insert(w->relation, rows->slots, static_cast<int>(rows->count), w->estate->es_output_cid, 0,
                       nullptr);
    uint32_t first = 0; // of the request
    for (uint32_t i = 0; i < rows->count; i++) {
        TupleTableSlot *row = rows->slots[i];
        if (rows->owners[i] != rows->owners[first])
            first = i;
        Blame(w->batch, rows->owners[i], 1);
        List *recheck = NIL;
        if (w->target->ri_NumIndices > 0)
            recheck = InsertIndexTuples(w->target, row, w->estate, nullptr, NIL);
        ExecARInsertTriggers(w->estate, w->target, row, recheck, nullptr);
        if (i + 1 == rows->count || rows->owners[i + 1] != rows->owners[i])
            CheckParents(w, rows->slots + first, i + 1 - first);
        ResetPerTupleExprContext(w->estate);
    }
    rows->count = 0;
}

// ON CONFLICT DO NOTHING for one row, as ExecInsert() does it. Whether it was inserted.
bool InsertUnlessConflict(TableWriter *w, TupleTableSlot *row, List *arbiters)
{
    constexpr int kTries = 1000;
    for (int i = 0; i < kTries; i++) {
        CHECK_FOR_INTERRUPTS();
        if (!HasNoConflict(w->target, row, w->estate, arbiters))
            return false;
        bool conflicted = false;
        const uint32 token = SpeculativeInsertionLockAcquire(GetCurrentTransactionId());
        table_tuple_insert_speculative(w->relation, row, w->estate->es_output_cid, 0, nullptr, token);
        List *recheck = InsertIndexTuples(w->target, row, w->estate, &conflicted, arbiters);
        table_tuple_complete_speculative(w->relation, row, token, !conflicted);
        SpeculativeInsertionLockRelease(GetCurrentTransactionId());
        if (!conflicted) {
            ExecARInsertTriggers(w->estate, w->target, row, recheck, nullptr);
            return true;
        }
    }
    elog(ERROR, "pg_weir: a conflict that does not hold still");
}

// The rows of a request that belong to the writer's table: of a partitioned one's, a partition.
template <typename F> void ForEachRowHere(const TableWriter &w, const RequestSlot &slot, F f)
{
    const Oid here = RelationGetRelid(w.relation);
    ForEachRow(slot, [here, f](RowHeader *header, MinimalTuple tuple) {
        if (header->relation == here)
            f(header, tuple);
    });
}

// The indexes that ON CONFLICT names: of a partition, those that belong to them.
List *ArbitersOf(const TableWriter &w, const RequestSlot &slot)
{
    List *arbiters = NIL;
    List *own = NIL;
    for (int i = 0; i < slot.arbiter_count; i++)
        arbiters = lappend_oid(arbiters, slot.arbiters[i]);
    if (slot.relation == RelationGetRelid(w.relation) || arbiters == NIL)
        return arbiters;
    for (int i = 0; i < w.target->ri_NumIndices; i++) {
        const Oid index = RelationGetRelid(w.target->ri_IndexRelationDescs[i]);
        ListCell *cell;
        foreach (cell, get_partition_ancestors(index))
            if (list_member_oid(arbiters, lfirst_oid(cell)))
                own = list_append_unique_oid(own, index);
    }
    if (list_length(own) != list_length(arbiters))
        elog(ERROR, "pg_weir: a partition lacks an index that ON CONFLICT names");
    return own;
}

void InsertSkipping(TableWriter *w, uint32_t i)
{
    const RequestSlot &slot = *w->batch->planned[i].slot;
    uint32_t inserted = 0;
    Blame(w->batch, i, 1);
    List *arbiters = ArbitersOf(*w, slot);
    TupleTableSlot *row = table_slot_create(w->relation, &w->estate->es_tupleTable);
    ForEachRowHere(*w, slot, [&](RowHeader *header, MinimalTuple tuple) {
        ExecForceStoreMinimalTuple(tuple, row, false);
        row->tts_tableOid = RelationGetRelid(w->relation);
        const bool is_new = InsertUnlessConflict(w, row, arbiters);
        header->skipped = !is_new;
        inserted += is_new;
        if (is_new)
            CheckParents(w, &row, 1);
        ResetPerTupleExprContext(w->estate);
    });
    w->batch->EntryOf(i).affected += inserted;
}

// What can be seen of a row before it is written: that it is there already, or refers to a row that is kept
// locked.
GiveBack Foresee(TableWriter *w, TupleTableSlot *row)
{
    if (w->has_parents && HasLockedParent(row))
        return GiveBack::kRowLocked;
    if (w->batch->checks_unique && !HasNoConflict(w->target, row, w->estate, NIL))
        return GiveBack::kError;
    return GiveBack::kNone;
}

void InsertRequest(TableWriter *w, Rows *rows, uint32_t i)
{
    const RequestSlot &slot = *w->batch->planned[i].slot;
    if (slot.rows > kRowsAtOnce - rows->count)
        FlushRows(w, rows);
    const uint32_t first = rows->count;
    GiveBack foreseen = GiveBack::kNone;
    Blame(w->batch, i, 1);
    if (w->batch->EntryOf(i).queued && slot.row_type != RowTypeOf(RelationGetDescr(w->relation)))
        ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
                        errmsg("the table's columns have changed since the row was queued")));
    ForEachRowHere(*w, slot, [&](const RowHeader *, MinimalTuple tuple) {
        TupleTableSlot *&row = rows->slots[rows->count];
        if (row == nullptr)
            row = table_slot_create(w->relation, &w->estate->es_tupleTable);
        ExecForceStoreMinimalTuple(tuple, row, false);
        row->tts_tableOid = RelationGetRelid(w->relation);
        if (!w->is_partition && foreseen == GiveBack::kNone)
            foreseen = Foresee(w, row);
        rows->owners[rows->count++] = i;
    });
    w->batch->EntryOf(i).affected = slot.rows;
    if (foreseen != GiveBack::kNone) {
        rows->count = first;
        LeaveOut(w->batch, i, foreseen);
    }
}

// Of a partition: the same for all requests, before anything of them is written to another one.
void ForeseeAll(TableWriter *w, uint32_t from, uint32_t end)
{
    TupleTableSlot *row = table_slot_create(w->relation, &w->estate->es_tupleTable);
    for (uint32_t i = from; i < end; i++) {
        const RequestSlot &slot = *w->batch->planned[i].slot;
        if (IsLeftOut(*w->batch, i) || slot.skips_conflicts)
            continue;
        GiveBack foreseen = GiveBack::kNone;
        Blame(w->batch, i, 1);
        ForEachRowHere(*w, slot, [&](const RowHeader *, MinimalTuple tuple) {
            ExecForceStoreMinimalTuple(tuple, row, false);
            row->tts_tableOid = RelationGetRelid(w->relation);
            if (foreseen == GiveBack::kNone)
                foreseen = Foresee(w, row);
            ResetPerTupleExprContext(w->estate);
        });
        if (foreseen != GiveBack::kNone)
            LeaveOut(w->batch, i, foreseen);
    }
}

void InsertAll(TableWriter *w, uint32_t from, uint32_t end)
{
    auto *rows = static_cast<Rows *>(palloc0(sizeof(Rows)));
    for (uint32_t i = from; i < end; i++)
        if (!IsLeftOut(*w->batch, i) && !w->batch->planned[i].slot->skips_conflicts)
            InsertRequest(w, rows, i);
    FlushRows(w, rows);
    for (uint32_t i = from; i < end; i++)
        if (!IsLeftOut(*w->batch, i) && w->batch->planned[i].slot->skips_conflicts)
            InsertSkipping(w, i);
}

// ---- updates and deletes --------------------------------------------------------------------------

const CompiledShape &Compile(TableWriter *w, const RequestSlot &slot)
{
    for (uint32_t i = 0; i < w->shape_count; i++) {
        const RequestSlot &other = *w->shapes[i].source;
        if (other.shape_hash == slot.shape_hash && other.shape_size == slot.shape_size &&
            memcmp(other.payload + other.shape_offset, slot.payload + slot.shape_offset, slot.shape_size) ==
                0)
            return w->shapes[i];
    }
    CompiledShape *compiled =
        &w->shapes[w->shape_count < kCompiledShapes ? w->shape_count++ : kCompiledShapes - 1];
    const MemoryContext previous = MemoryContextSwitchTo(w->estate->es_query_cxt);
    const Shape &shape = KeepShape(slot);
    // The batch's own: of two kept shapes with one place the first goes when the second comes.
    const auto *expressions = static_cast<const List *>(copyObjectImpl(shape.expressions));
    compiled->source = &slot;
    compiled->count = list_length(expressions);
    const auto count = static_cast<size_t>(compiled->count) + 1;
    compiled->expressions = static_cast<ExprState **>(palloc(sizeof(ExprState *) * count));
    compiled->columns = static_cast<int16_t *>(palloc(sizeof(int16_t) * count));
    for (int i = 0; i < compiled->count; i++) {
        compiled->expressions[i] = ExecInitExpr(static_cast<Expr *>(list_nth(expressions, i)), nullptr);
        compiled->columns[i] = static_cast<int16_t>(list_nth_int(shape.columns, i));
    }
    compiled->conditions = ExecInitQual(static_cast<List *>(copyObjectImpl(shape.conditions)), nullptr);
    MemoryContextSwitchTo(previous);
    return *compiled;
}

enum class RowState { kMissing, kUnchanged, kChanged, kDeleted };

// The row's newest image, as old_row has it.
void TakeImage(TableWriter *w)
{
    slot_getallattrs(w->old_row);
    ExecClearTuple(w->image);
    const auto columns = static_cast<size_t>(RelationGetDescr(w->relation)->natts);
    memcpy(w->image->tts_values, w->old_row->tts_values, columns * sizeof(Datum));
    memcpy(w->image->tts_isnull, w->old_row->tts_isnull, columns * sizeof(bool));
    ExecStoreVirtualTuple(w->image);
    w->image->tts_tableOid = RelationGetRelid(w->relation);
}

// For the image. An array that the next expression may change in place would be the one that is stored.
Datum Evaluate(ExprState *expression, ExprContext *context, const FormData_pg_attribute *column,
               bool *is_null)
{
    const Datum value = ExecEvalExpr(expression, context, is_null);
    return MakeExpandedObjectReadOnly(value, *is_null, column->attlen);
}

// Of the new row, which the image shows for the time being. False: a NOT NULL is broken.
bool GenerateColumns(TableWriter *w, ExprContext *context)
{
    const TupleDesc descriptor = RelationGetDescr(w->relation);
    for (int i = 0; w->generated != nullptr && i < descriptor->natts; i++) {
        if (w->generated[i] == nullptr)
            continue;
        bool *is_null = &w->image->tts_isnull[i];
        w->image->tts_values[i] = Evaluate(w->generated[i], context, TupleDescAttr(descriptor, i), is_null);
        if (*is_null && TupleDescAttr(descriptor, i)->attnotnull)
            return false;
    }
    return true;
}

// Evaluates the SET list into the image. False: the new row breaks a constraint, the image is as before.
bool SetColumns(TableWriter *w, const CompiledShape &shape, ExprContext *context)
{
    const TupleDesc descriptor = RelationGetDescr(w->relation);
    const auto columns = static_cast<size_t>(descriptor->natts);
    auto *values = static_cast<Datum *>(palloc(columns * sizeof(Datum)));
    auto *nulls = static_cast<bool *>(palloc(columns * sizeof(bool)));
    memcpy(values, w->image->tts_values, columns * sizeof(Datum));
    memcpy(nulls, w->image->tts_isnull, columns * sizeof(bool));
    for (int i = 0; i < shape.count; i++) {
        const int column = shape.columns[i] - 1;
        const FormData_pg_attribute *attribute = TupleDescAttr(descriptor, column);
        values[column] = Evaluate(shape.expressions[i], context, attribute, &nulls[column]);
        if (nulls[column] && attribute->attnotnull)
            return false;
    }
    Datum *old_values = w->image->tts_values;
    bool *old_nulls = w->image->tts_isnull;
    w->image->tts_values = values;
    w->image->tts_isnull = nulls;
    bool holds = GenerateColumns(w, context);
    for (int i = 0; i < w->check_count && holds; i++)
        holds = ExecCheck(w->checks[i], context);
    w->image->tts_values = old_values;
    w->image->tts_isnull = old_nulls;
    if (holds) {
        memcpy(old_values, values, columns * sizeof(Datum));
        memcpy(old_nulls, nulls, columns * sizeof(bool));
    }
    return holds;
}

// A value as RETURNING hands it over. What is stored out of line may go before the client has read it; and
// what the client does not ask for need not travel.
Datum ValueToReturn(Datum value, bool is_asked_for)
{
    constexpr size_t kSmall = 256;
    auto *varlena = reinterpret_cast<struct varlena *>(DatumGetPointer(value));
    if (!is_asked_for && (VARATT_IS_EXTERNAL(varlena) || VARSIZE_ANY(varlena) > kSmall)) {
        varlena = static_cast<struct varlena *>(palloc(VARHDRSZ));
        SET_VARSIZE(varlena, VARHDRSZ);
    } else if (VARATT_IS_EXTERNAL(varlena))
        varlena = detoast_external_attr(varlena);
    return PointerGetDatum(varlena);
}

// Hands the row as it is now to the request's client: behind what came in the payload, if it fits there.
void ReturnImage(TableWriter *w, RequestSlot *slot)
{
    const TupleDesc descriptor = RelationGetDescr(w->relation);
    const auto columns = static_cast<size_t>(descriptor->natts);
    auto *values = static_cast<Datum *>(palloc(columns * sizeof(Datum)));
    memcpy(values, w->image->tts_values, columns * sizeof(Datum));
    for (int i = 0; i < descriptor->natts; i++)
        if (!w->image->tts_isnull[i] && TupleDescAttr(descriptor, i)->attlen == -1)
            values[i] =
                ValueToReturn(values[i], (slot->returned_columns & RequestSlot::ColumnBit(i + 1)) != 0);
    const MinimalTuple tuple = FormMinimalTuple(descriptor, values, w->image->tts_isnull);
    const size_t offset = MAXALIGN(slot->large != 0 ? slot->key_size + slot->shape_size : slot->bytes);
    char *to = offset + tuple->t_len <= RequestSlot::kPayloadSize ? slot->payload + offset
                                                                  : AllocateReturnedRow(slot, tuple->t_len);
    if (to == slot->payload + offset)
        FreeReturnedRow(slot);
    memcpy(to, tuple, tuple->t_len);
    slot->returned_offset = static_cast<uint32_t>(offset);
}

// Applies one request to the image.
void ApplyRequest(TableWriter *w, uint32_t i, RowState *state)
{
    BatchEntry &entry = w->batch->EntryOf(i);
    entry.affected = 0;
    entry.folded = false;
    if (IsLeftOut(*w->batch, i) || *state == RowState::kDeleted || *state == RowState::kMissing)
        return;
    RequestSlot &slot = *entry.slot;
    Blame(w->batch, i, 1);
    const CompiledShape &shape = Compile(w, slot);
    ExprContext *context = GetPerTupleExprContext(w->estate);
    context->ecxt_scantuple = w->image;
    context->ecxt_param_list_info = ReadValues(slot);
    if (!ExecQual(shape.conditions, context))
        return;
    if (slot.kind == RequestKind::kDelete)
        *state = RowState::kDeleted;
    else if (SetColumns(w, shape, context))
        *state = RowState::kChanged;
    else {
        LeaveOut(w->batch, i, GiveBack::kError);
        return;
    }
    entry.affected = 1;
    if (slot.returns)
        ReturnImage(w, &slot);
}

// All of a row's requests, in their order, on the image taken from old_row.
RowState ApplyRequests(TableWriter *w, uint32_t from, uint32_t end)
{
    RowState state = RowState::kUnchanged;
    const MemoryContext previous = MemoryContextSwitchTo(GetPerTupleMemoryContext(w->estate));
    TakeImage(w);
    for (uint32_t i = from; i < end; i++)
        ApplyRequest(w, i, &state);
    MemoryContextSwitchTo(previous);
    Blame(w->batch, from, end - from);
    return state;
}

// The row as the batch's snapshot sees it, into old_row.
bool FetchRow(TableWriter *w, const RequestSlot &slot)
{
    ScanKeyData keys[kMaxKeyColumns];
    int count;
    const MemoryContext previous = MemoryContextSwitchTo(GetPerTupleMemoryContext(w->estate));
    const Oid index_id = ReadKey(slot, keys, &count);
    MemoryContextSwitchTo(previous);
    Relation index = nullptr;
    for (int i = 0; i < w->target->ri_NumIndices; i++)
        if (RelationGetRelid(w->target->ri_IndexRelationDescs[i]) == index_id)
            index = w->target->ri_IndexRelationDescs[i];
    if (index == nullptr)
        elog(ERROR, "pg_weir: the index of a request is gone");
    IndexScanDesc scan = BeginIndexScan(w->relation, index, w->estate->es_snapshot, count);
    index_rescan(scan, keys, count, nullptr, 0);
    const bool found = index_getnext_slot(scan, ForwardScanDirection, w->old_row);
    index_endscan(scan);
    return found;
}

enum class WriteEnd { kDone, kGone, kLocked, kNewer, kOurs };

WriteEnd EndOf(TM_Result result)
{
    switch (result) {
    case TM_Ok:
        return WriteEnd::kDone;
    case TM_Deleted:
        return WriteEnd::kGone;
    case TM_BeingModified:
    case TM_WouldBlock:
        return WriteEnd::kLocked;
    case TM_Updated:
        return WriteEnd::kNewer;
    case TM_SelfModified:
        return WriteEnd::kOurs;
    case TM_Invisible:
        break;
    }
    elog(ERROR, "pg_weir: unexpected state of a row: %d", static_cast<int>(result));
}

// Writes the image over the version that it was made from.
WriteEnd WriteRow(TableWriter *w, RowState state, bool wait, LockTupleMode *mode)
{
    TM_FailureData failure;
    ItemPointerData at = w->old_row->tts_tid;
    *mode = LockTupleExclusive;
    if (state == RowState::kDeleted)
        return EndOf(table_tuple_delete(w->relation, &at, w->estate->es_output_cid, w->estate->es_snapshot,
                                        InvalidSnapshot, wait, &failure, false));
    UpdatedIndexes indexes = UpdatedIndexes();
    const TM_Result result =
        table_tuple_update(w->relation, &at, w->image, w->estate->es_output_cid, w->estate->es_snapshot,
                           InvalidSnapshot, wait, &failure, mode, &indexes);
    if (result == TM_Ok && w->target->ri_NumIndices > 0)
        list_free(UpdateIndexTuples(w->target, w->image, w->estate, indexes));
    return EndOf(result);
}

// Somebody committed a newer version: locks it, into old_row.
WriteEnd FollowRow(TableWriter *w, bool wait, LockTupleMode mode)
{
    TM_FailureData failure;
    ItemPointerData at = w->old_row->tts_tid;
    return EndOf(table_tuple_lock(w->relation, &at, w->estate->es_snapshot, w->old_row,
                                  w->estate->es_output_cid, mode, wait ? LockWaitBlock : LockWaitSkip,
                                  TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure));
}

// Another key of this batch led to the same row, which therefore has a version of this transaction: look
// again, with that version visible.
void SeeOwnWrites(TableWriter *w)
{
    CommandCounterIncrement();
    UpdateActiveSnapshotCommandId();
    w->estate->es_snapshot = GetActiveSnapshot();
    w->estate->es_output_cid = GetCurrentCommandId(true);
}

// Of a row's requests that changed it, the last one made the version; the others' are folded into it.
void NoteFolded(TableWriter *w, uint32_t from, uint32_t end)
{
    bool later = false;
    for (uint32_t i = end; i-- > from;) {
        BatchEntry &entry = w->batch->EntryOf(i);
        entry.folded = later && entry.affected > 0;
        later = later || entry.affected > 0;
    }
}

void NoneAffected(TableWriter *w, uint32_t from, uint32_t end)
{
    for (uint32_t i = from; i < end; i++)
        w->batch->EntryOf(i).affected = 0;
}

// All requests for one row. False: it is locked, and was not to be waited for.
bool ModifyRow(TableWriter *w, uint32_t from, uint32_t end, bool wait)
{
    constexpr int kTries = 1000;
    WriteEnd ended = WriteEnd::kOurs; // to be fetched
    Blame(w->batch, from, end - from);
    for (int i = 0; i < kTries; i++) {
        ResetPerTupleExprContext(w->estate);
        if (ended == WriteEnd::kOurs && !FetchRow(w, *w->batch->planned[from].slot)) {
            NoneAffected(w, from, end);
            return true;
        }
        const RowState state = ApplyRequests(w, from, end);
        if (state == RowState::kUnchanged)
            return true;
        LockTupleMode mode;
        ended = WriteRow(w, state, wait, &mode);
        if (ended == WriteEnd::kNewer)
            ended = FollowRow(w, wait, mode);
        else if (ended == WriteEnd::kDone) {
            NoteFolded(w, from, end);
            return true;
        }
        if (ended == WriteEnd::kLocked)
            return false;
        if (ended == WriteEnd::kGone) {
            NoneAffected(w, from, end);
            return true;
        }
        if (ended == WriteEnd::kOurs)
            SeeOwnWrites(w);
        CHECK_FOR_INTERRUPTS();
    }
    elog(ERROR, "pg_weir: a row does not hold still");
}

void ModifyAll(TableWriter *w, uint32_t from, uint32_t end)
{
    Batch *batch = w->batch;
    const TupleDesc descriptor = RelationGetDescr(w->relation);
    w->old_row = table_slot_create(w->relation, &w->estate->es_tupleTable);
    w->image = ExecInitExtraTupleSlot(w->estate, descriptor, &TTSOpsVirtual);
    PrepareChecks(w);
    PrepareGenerated(w);
    bool postponed = false;
    for (uint32_t i = from, next; i < end; i = next) {
        next = RunEnd(batch->planned, end, i, true);
        const bool done = ModifyRow(w, i, next, false);
        for (uint32_t j = i; j < next; j++)
            batch->EntryOf(j).postponed = !done;
        postponed = postponed || !done;
    }
    for (uint32_t i = from, next; i < end && postponed; i = next) {
        next = RunEnd(batch->planned, end, i, true);
        if (!batch->EntryOf(i).postponed)
            continue;
        const bool kept = IsKeptLocked(*batch->planned[i].slot);
        if (ModifyRow(w, i, next, !kept))
            continue;
        for (uint32_t j = i; j < next; j++)
            LeaveOut(batch, j, GiveBack::kRowLocked);
    }
}

// ---- the tables of a batch ------------------------------------------------------------------------

void WriteTable(Batch *batch, Relation relation, uint32_t from, uint32_t end, bool is_partition)
{
    uint32_t inserts = from;
    while (inserts < end && batch->planned[inserts].slot->kind == RequestKind::kInsert)
        inserts++;
    TableWriter *w = BeginTable(batch, relation, from, end);
    w->is_partition = is_partition;
    InsertAll(w, from, inserts);
    if (inserts < end) {
        if (inserts > from)
            SeeOwnWrites(w);
        ModifyAll(w, inserts, end);
    }
    Blame(batch, 0, 0);
    EndTable(w);
    CommandCounterIncrement();
}

void CheckPartition(Batch *batch, Relation relation, uint32_t from, uint32_t end)
{
    TableWriter *w = BeginTable(batch, relation, from, end);
    ForeseeAll(w, from, end);
    Blame(batch, 0, 0);
    EndTable(w);
}

// As the table's owner, restricted: index expressions and checks run here.
template <typename F> void AsOwner(Relation relation, F f)
{
    Oid user;
    int context;
    GetUserIdAndSecContext(&user, &context);
    SetUserIdAndSecContext(relation->rd_rel->relowner, context | SECURITY_RESTRICTED_OPERATION);
    const int nest_level = NewGUCNestLevel();
    f();
    AtEOXact_GUC(false, nest_level);
    SetUserIdAndSecContext(user, context);
}

// ---- a partitioned table --------------------------------------------------------------------------

// Its INSERTs have been routed by their clients, who hold locks on the partitions, too.

bool HasRowOf(const RequestSlot &slot, Oid partition)
{
    bool found = false;
    ForEachRow(
        slot, [&](const RowHeader *header, MinimalTuple) { found = found || header->relation == partition; });
    return found;
}

List *PartitionsOf(Batch *batch, uint32_t from, uint32_t end)
{
    List *partitions = NIL;
    Oid last = InvalidOid;
    for (uint32_t i = from; i < end; i++) {
        Blame(batch, i, 1);
        ForEachRow(*batch->planned[i].slot, [&](const RowHeader *header, MinimalTuple) {
            if (header->relation != last)
                partitions = list_append_unique_oid(partitions, header->relation);
            last = header->relation;
        });
    }
    Blame(batch, 0, 0);
    list_sort(partitions, list_oid_cmp);
    return partitions;
}

// Calls `f(partition)` for each, opened.
template <typename F> void ForEachPartition(const List *partitions, F f)
{
    ListCell *cell;
    foreach (cell, partitions) {
        Relation partition = table_open(lfirst_oid(cell), NoLock);
        AsOwner(partition, [&] { f(partition); });
        table_close(partition, NoLock);
        UpdateActiveSnapshotCommandId();
    }
}

// A request has its rows in several: all its duplicates are looked for before the first is written.
void WritePartitions(Batch *batch, uint32_t from, uint32_t end)
{
    List *locked = NIL;
    ListCell *cell;
    foreach (cell, PartitionsOf(batch, from, end)) {
        if (ConditionalLockRelationOid(lfirst_oid(cell), RowExclusiveLock)) {
            locked = lappend_oid(locked, lfirst_oid(cell));
            continue;
        }
        for (uint32_t i = from; i < end; i++)
            if (!IsLeftOut(*batch, i) && HasRowOf(*batch->planned[i].slot, lfirst_oid(cell)))
                LeaveOut(batch, i, GiveBack::kRelationLocked);
    }
    if (batch->checks_unique)
        ForEachPartition(locked, [&](Relation partition) { CheckPartition(batch, partition, from, end); });
    ForEachPartition(locked, [&](Relation partition) { WriteTable(batch, partition, from, end, true); });
}

} // namespace

void WriteBatch(Batch *batch)
{
    for (uint32_t from = 0, end; from < batch->count; from = end) {
        end = RunEnd(batch->planned, batch->count, from, false);
        const Oid relation_id = batch->planned[from].slot->relation;
        for (uint32_t i = from; i < end; i++)
            batch->EntryOf(i).affected = 0;
        // Never wait for the table: a DDL statement that waits for our clients' locks would close a circle
        // that nobody sees.
        if (!ConditionalLockRelationOid(relation_id, RowExclusiveLock)) {
            for (uint32_t i = from; i < end; i++)
                LeaveOut(batch, i, GiveBack::kRelationLocked);
            continue;
        }
        Relation relation = table_open(relation_id, NoLock);
        if (relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
            WritePartitions(batch, from, end);
        else
            AsOwner(relation, [&] { WriteTable(batch, relation, from, end, false); });
        table_close(relation, NoLock);
        UpdateActiveSnapshotCommandId();
    }
}

} // namespace weir
