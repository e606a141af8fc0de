#include "coalesce/shape.hpp"

#include "coalesce/insert_rows.hpp"
#include "coalesce/large_payload.hpp"
#include "pg/compat.hpp"

extern "C" {
#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/transam.h"
#include "catalog/pg_am_d.h"
#include "catalog/pg_index.h"
#include "catalog/pg_proc_d.h"
#include "common/hashfn.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/plannodes.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
}

namespace weir
{

namespace
{

// ---- expressions --------------------------------------------------------------------------------

struct Values {
    uint32_t count;
    Oid types[kMaxValues];
    Datum values[kMaxValues];
    bool nulls[kMaxValues];
};

struct Normalizer {
    Index table; // range table index
    ParamListInfo parameters;
    EState *estate;
    Values *values;
    Decline decline;
};

Node *Refuse(Normalizer *n, Decline why)
{
    if (n->decline == Decline::kNone)
        n->decline = why;
    return nullptr;
}

Node *NewValue(Normalizer *n, Oid type, int32 type_modifier, Oid collation, Datum value, bool is_null)
{
    Values *values = n->values;
    if (values->count == kMaxValues)
        return Refuse(n, Decline::kTooLarge);
    values->types[values->count] = type;
    values->values[values->count] = value;
    values->nulls[values->count] = is_null;
    Param *parameter = makeNode(Param);
    parameter->paramkind = PARAM_EXTERN;
    parameter->paramid = static_cast<int>(++values->count);
    parameter->paramtype = type;
    parameter->paramtypmod = type_modifier;
    parameter->paramcollid = collation;
    parameter->location = -1;
    return reinterpret_cast<Node *>(parameter);
}

Node *NormalizeParam(Normalizer *n, const Param *param)
{
    ParamListInfo parameters = n->parameters;
    if (param->paramkind != PARAM_EXTERN || parameters == nullptr || param->paramid <= 0 ||
        param->paramid > parameters->numParams)
        return Refuse(n, Decline::kExpression);
    ParamExternData space;
    const ParamExternData *value = parameters->paramFetch != nullptr
                                       ? parameters->paramFetch(parameters, param->paramid, false, &space)
                                       : &parameters->params[param->paramid - 1];
    if (value->ptype != param->paramtype)
        return Refuse(n, Decline::kExpression);
    return NewValue(n, param->paramtype, param->paramtypmod, param->paramcollid, value->value, value->isnull);
}

// What this session alone can compute, and what is the same for every row.
Node *Evaluate(Normalizer *n, Node *node)
{
    bool is_null;
    ExprState *state = ExecInitExpr(reinterpret_cast<Expr *>(node), nullptr);
    const Datum value = ExecEvalExpr(state, GetPerTupleExprContext(n->estate), &is_null);
    return NewValue(n, exprType(node), exprTypmod(node), exprCollation(node), value, is_null);
}

bool IsBuiltin(Oid object)
{
    return object < FirstUnpinnedObjectId;
}

// check_functions_in_node's callback: true ends the search.
bool IsForeignFunction(Oid function, void *)
{
    return !IsBuiltin(function) || func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

bool IsKnownNode(const Node *node)
{
    switch (nodeTag(node)) {
    case T_OpExpr:
        return !reinterpret_cast<const OpExpr *>(node)->opretset;
    case T_FuncExpr:
        return !reinterpret_cast<const FuncExpr *>(node)->funcretset;
    case T_MinMaxExpr:
        return IsBuiltin(reinterpret_cast<const MinMaxExpr *>(node)->minmaxtype);
    case T_NullTest:
        return !reinterpret_cast<const NullTest *>(node)->argisrow;
    case T_DistinctExpr:
    case T_NullIfExpr:
    case T_BoolExpr:
    case T_RelabelType:
    case T_CaseExpr:
    case T_CaseWhen:
    case T_CaseTestExpr:
    case T_CoalesceExpr:
    case T_BooleanTest:
    case T_List:
        return true;
    default:
        return false;
    }
}

Node *Normalize(Node *node, Normalizer *n)
{
    if (node == nullptr || n->decline != Decline::kNone)
        return nullptr;
    switch (nodeTag(node)) {
    case T_Const: {
        const auto *c = reinterpret_cast<const Const *>(node);
        return NewValue(n, c->consttype, c->consttypmod, c->constcollid, c->constvalue, c->constisnull);
    }
    case T_Param:
        return NormalizeParam(n, reinterpret_cast<const Param *>(node));
    case T_Var: {
        const auto *var = reinterpret_cast<const Var *>(node);
        if (var->varno != static_cast<int>(n->table) || var->varattno <= 0 || var->varlevelsup != 0)
            return Refuse(n, Decline::kExpression);
        Var *copy = static_cast<Var *>(copyObjectImpl(var));
        copy->varno = 1;
        copy->location = -1;
        return reinterpret_cast<Node *>(copy);
    }
    case T_SQLValueFunction:
        return Evaluate(n, node);
    case T_FuncExpr: {
        const Oid function = reinterpret_cast<const FuncExpr *>(node)->funcid;
        if (function == F_NOW || function == F_TRANSACTION_TIMESTAMP || function == F_STATEMENT_TIMESTAMP)
            return Evaluate(n, node);
        break;
    }
    default:
        break;
    }
    if (!IsKnownNode(node) || check_functions_in_node(node, IsForeignFunction, nullptr))
        return Refuse(n, Decline::kExpression);
    return MutateTree(node, Normalize, n);
}

// ---- the plan -----------------------------------------------------------------------------------

// All conditions of the scan, whichever way it finds its rows; null with a decline: not a scan we know.
List *ConditionsOf(const Plan *scan, Decline *decline)
{
    switch (nodeTag(scan)) {
    case T_SeqScan:
        return scan->qual;
    case T_IndexScan: {
        const auto *index_scan = reinterpret_cast<const IndexScan *>(scan);
        if (index_scan->indexorderby != NIL)
            break;
        return list_concat_copy(index_scan->indexqualorig, scan->qual);
    }
    case T_BitmapHeapScan:
        // Lossy pages are rechecked with the first, all rows with the second.
        return list_concat_copy(reinterpret_cast<const BitmapHeapScan *>(scan)->bitmapqualorig, scan->qual);
    default:
        break;
    }
    *decline = Decline::kStatement;
    return NIL;
}

// ---- the key ------------------------------------------------------------------------------------

const Node *StripRelabel(const Node *node)
{
    while (node != nullptr && IsA(node, RelabelType))
        node = reinterpret_cast<const Node *>(reinterpret_cast<const RelabelType *>(node)->arg);
    return node;
}

// Whether `condition` (normalized) says that the column equals a value, in the index's sense.
bool GivesColumn(const Node *condition, AttrNumber column, Oid family, Oid collation, KeyColumn *key)
{
    if (!IsA(condition, OpExpr) || list_length(reinterpret_cast<const OpExpr *>(condition)->args) != 2)
        return false;
    const auto *op = reinterpret_cast<const OpExpr *>(condition);
    const Node *left = StripRelabel(static_cast<const Node *>(linitial(op->args)));
    const Node *right = static_cast<const Node *>(lsecond(op->args));
    Oid operator_id = op->opno;
    if (!IsA(left, Var)) {
        const Node *swap = StripRelabel(right);
        right = static_cast<const Node *>(linitial(op->args));
        left = swap;
        operator_id = get_commutator(operator_id);
    }
    if (!IsA(left, Var) || reinterpret_cast<const Var *>(left)->varattno != column || !IsA(right, Param) ||
        !OidIsValid(operator_id) || get_op_opfamily_strategy(operator_id, family) != BTEqualStrategyNumber ||
        (OidIsValid(collation) && op->inputcollid != collation))
        return false;
    int strategy;
    Oid left_type;
    get_op_opfamily_properties(operator_id, family, false, &strategy, &left_type, &key->type);
    key->function = get_opcode(operator_id);
    key->collation = collation;
    key->parameter = static_cast<int16_t>(reinterpret_cast<const Param *>(right)->paramid - 1);
    return true;
}

bool MatchIndex(Relation index, const List *conditions, KeyHeader *key)
{
    const Form_pg_index form = index->rd_index;
    const int columns = form->indnkeyatts;
    if (!form->indisunique || !form->indimmediate || !form->indisvalid || !form->indisready ||
        index->rd_rel->relam != BTREE_AM_OID || columns > static_cast<int>(kMaxKeyColumns) ||
        RelationGetIndexPredicate(index) != NIL)
        return false;
    for (int i = 0; i < columns; i++) {
        const AttrNumber column = form->indkey.values[i];
        bool found = false;
        ListCell *cell;
        foreach (cell, conditions)
            if (column != 0 && !found)
                found = GivesColumn(static_cast<const Node *>(lfirst(cell)), column, index->rd_opfamily[i],
                                    index->rd_indcollation[i], &key->columns[i]);
        if (!found)
            return false;
        key->columns[i].number = static_cast<int16_t>(i + 1);
    }
    key->index = RelationGetRelid(index);
    key->count = static_cast<uint32_t>(columns);
    return true;
}

bool FindKey(Relation relation, const List *conditions, KeyHeader *key)
{
    List *indexes = RelationGetIndexList(relation);
    bool found = false;
    ListCell *cell;
    memset(static_cast<void *>(key), 0, sizeof(*key)); // compared byte by byte
    foreach (cell, indexes) {
        if (found)
            break;
        // As the planner does; DROP INDEX takes a stronger lock on the table than we hold.
        Relation index = index_open(lfirst_oid(cell), AccessShareLock);
        found = MatchIndex(index, conditions, key);
        index_close(index, AccessShareLock);
    }
    list_free(indexes);
    return found;
}

// ---- shapes seen before -------------------------------------------------------------------------

// The text and the key of a shape are always the same: made once per backend, as long as the table does not
// change.
struct KnownShape {
    MemoryContext memory; // null: free
    Oid relation;         // InvalidOid: free
    uint64_t facts_version;
    RequestKind kind;
    List *nodes;
    char *text;
    uint32_t text_size;
    uint64_t hash;
    Decline decline;
    KeyHeader key;
};

constexpr int kKnownShapes = 8;
KnownShape known_shapes[kKnownShapes];
int next_known_shape = 0;

// Whether an UPDATE may set these columns.
bool MaySet(const List *columns, const Bitmapset *fixed)
{
    ListCell *cell;
    foreach (cell, columns)
        if (bms_is_member(lfirst_int(cell) - FirstLowInvalidHeapAttributeNumber, fixed))
            return false;
    return true;
}

void Learn(KnownShape *known, Relation relation, const TableFacts &facts, RequestKind kind, const List *nodes)
{
    if (known->memory == nullptr)
        known->memory = AllocSetContextCreate(TopMemoryContext, "pg_weir shape", ALLOCSET_SMALL_SIZES);
    known->relation = InvalidOid; // not to be found if an error ends this
    MemoryContextReset(known->memory);
    const MemoryContext previous = MemoryContextSwitchTo(known->memory);
    known->nodes = static_cast<List *>(copyObjectImpl(nodes));
    known->text = nodeToString(known->nodes);
    MemoryContextSwitchTo(previous);
    known->text_size = static_cast<uint32_t>(strlen(known->text) + 1);
    known->hash = hash_bytes_extended(reinterpret_cast<const unsigned char *>(known->text),
                                      static_cast<int>(known->text_size), 0);
    known->decline = !MaySet(static_cast<const List *>(lsecond(nodes)), facts.fixed) ? Decline::kColumn
                     : !FindKey(relation, static_cast<const List *>(lthird(nodes)), &known->key)
                         ? Decline::kKey
                         : Decline::kNone;
    known->kind = kind;
    known->facts_version = facts.version;
    known->relation = facts.relation;
}

const KnownShape &ShapeOf(Relation relation, const TableFacts &facts, RequestKind kind, const List *nodes)
{
    for (const KnownShape &known : known_shapes)
        if (known.relation == facts.relation && known.facts_version == facts.version && known.kind == kind &&
            equal(known.nodes, nodes))
            return known;
    KnownShape *known = &known_shapes[next_known_shape];
    next_known_shape = (next_known_shape + 1) % kKnownShapes;
    Learn(known, relation, facts, kind, nodes);
    return *known;
}

// ---- packing ------------------------------------------------------------------------------------

struct Packer {
    char *at;
    char *end;

    size_t Left() const { return static_cast<size_t>(end - at); }

    bool Put(const void *from, size_t size)
    {
        if (size > Left())
            return false;
        memcpy(at, from, size);
        at += size;
        return true;
    }

    bool PutDatum(Oid type, Datum value, bool is_null)
    {
        int16 length;
        bool by_value;
        get_typlenbyval(type, &length, &by_value);
        if (datumEstimateSpace(value, is_null, by_value, length) > Left())
            return false;
        datumSerialize(value, is_null, by_value, length, &at);
        return true;
    }
};

// In one piece each: what it points to may not be there for the worker. Returns the room that they need.
size_t Flatten(Values *values)
{
    size_t size = 0;
    for (uint32_t i = 0; i < values->count; i++) {
        int16 length;
        bool by_value;
        get_typlenbyval(values->types[i], &length, &by_value);
        Datum *value = &values->values[i];
        if (!values->nulls[i] && length == -1 && VARATT_IS_EXTERNAL(DatumGetPointer(*value)))
            *value = PointerGetDatum(detoast_attr(reinterpret_cast<varlena *>(DatumGetPointer(*value))));
        size += sizeof(Oid) + datumEstimateSpace(*value, values->nulls[i], by_value, length);
    }
    return size;
}

// Into the payload if there is room, else into memory for large ones.
bool PackValues(Packer packer, const Values &values, size_t size, RequestSlot *slot)
{
    slot->values_count = values.count;
    slot->values_offset = static_cast<uint32_t>(packer.at - slot->payload);
    slot->bytes = static_cast<uint32_t>(slot->values_offset + size);
    if (size > packer.Left()) {
        char *large = AllocateLargePayload(slot, size);
        if (large == nullptr)
            return false;
        packer = {large, large + size};
        slot->values_offset = 0;
    }
    bool fits = true;
    for (uint32_t i = 0; i < values.count && fits; i++)
        fits = packer.Put(&values.types[i], sizeof(Oid)) &&
               packer.PutDatum(values.types[i], values.values[i], values.nulls[i]);
    return fits;
}

bool Pack(const KnownShape &shape, Values *all, RequestSlot *slot)
{
    const size_t size = Flatten(all);
    const Values &values = *all;
    Packer packer = {slot->payload, slot->payload + RequestSlot::kPayloadSize};
    slot->key_offset = 0;
    bool fits = packer.Put(&shape.key, sizeof(KeyHeader));
    for (uint32_t i = 0; i < shape.key.count && fits; i++) {
        const int16_t parameter = shape.key.columns[i].parameter;
        fits = packer.PutDatum(values.types[parameter], values.values[parameter], false);
    }
    slot->key_size = static_cast<uint32_t>(packer.at - slot->payload);
    slot->shape_offset = slot->key_size;
    fits = fits && packer.Put(shape.text, shape.text_size);
    slot->shape_size = shape.text_size;
    slot->shape_hash = shape.hash;
    return fits && PackValues(packer, values, size, slot);
}

// The SET list without the row's identity.
List *SetExpressions(const Plan *scan)
{
    List *expressions = NIL;
    ListCell *cell;
    foreach (cell, scan->targetlist) {
        auto *entry = lfirst_node(TargetEntry, cell);
        if (!entry->resjunk)
            expressions = lappend(expressions, entry->expr);
    }
    return expressions;
}

} // namespace

Decline PackUpdateOrDelete(QueryDesc *query_desc, Relation relation, const TableFacts &facts,
                           RequestSlot *slot)
{
    const auto *modify = reinterpret_cast<const ModifyTable *>(query_desc->plannedstmt->planTree);
    const Plan *scan = outerPlan(modify);
    const bool updates = modify->operation == CMD_UPDATE;
    Values values;
    values.count = 0;
    Normalizer n = {static_cast<Index>(linitial_int(modify->resultRelations)), query_desc->params,
                    query_desc->estate, &values, Decline::kNone};
    List *conditions = ConditionsOf(scan, &n.decline);
    List *columns = updates ? static_cast<List *>(linitial(modify->updateColnosLists)) : NIL;
    List *expressions = updates ? SetExpressions(scan) : NIL;
    if (n.decline != Decline::kNone)
        return n.decline;
    if (reinterpret_cast<const Scan *>(scan)->scanrelid != n.table || conditions == NIL)
        return Decline::kKey;
    Node *set = Normalize(reinterpret_cast<Node *>(expressions), &n);
    Node *where = Normalize(reinterpret_cast<Node *>(conditions), &n);
    if (n.decline != Decline::kNone)
        return n.decline;

    const RequestKind kind = updates ? RequestKind::kUpdate : RequestKind::kDelete;
    const KnownShape &shape = ShapeOf(relation, facts, kind, list_make3(set, columns, where));
    if (shape.decline != Decline::kNone || slot == nullptr)
        return shape.decline;
    for (uint32_t i = 0; i < shape.key.count; i++)
        if (values.nulls[shape.key.columns[i].parameter])
            return Decline::kKey;
    slot->kind = kind;
    slot->rows = 1;
    slot->returns = modify->returningLists != NIL;
    slot->returned_columns = ReturnedColumns(query_desc);
    return Pack(shape, &values, slot) ? Decline::kNone : Decline::kTooLarge;
}

Shape ReadShape(const RequestSlot &slot)
{
    List *nodes = static_cast<List *>(stringToNode(slot.payload + slot.shape_offset));
    return {static_cast<List *>(linitial(nodes)), static_cast<List *>(lsecond(nodes)),
            static_cast<List *>(lthird(nodes))};
}

// datumRestore() only reads, and asks for a char ** nevertheless.
ParamListInfo ReadValues(const RequestSlot &slot)
{
    char *at = BodyOf(slot) + slot.values_offset;
    ParamListInfo values = makeParamList(static_cast<int>(slot.values_count));
    for (uint32_t i = 0; i < slot.values_count; i++) {
        ParamExternData *value = &values->params[i];
        memcpy(&value->ptype, at, sizeof(Oid));
        at += sizeof(Oid);
        value->pflags = PARAM_FLAG_CONST;
        value->value = datumRestore(&at, &value->isnull);
    }
    return values;
}

Oid ReadKey(const RequestSlot &slot, ScanKeyData *keys, int *count)
{
    KeyHeader header;
    memcpy(static_cast<void *>(&header), slot.payload + slot.key_offset, sizeof(header));
    char *at = const_cast<char *>(slot.payload) + slot.key_offset + sizeof(header);
    for (uint32_t i = 0; i < header.count; i++) {
        const KeyColumn &column = header.columns[i];
        bool is_null;
        const Datum value = datumRestore(&at, &is_null);
        ScanKeyEntryInitialize(&keys[i], 0, column.number, BTEqualStrategyNumber, column.type,
                               column.collation, column.function, value);
    }
    *count = static_cast<int>(header.count);
    return header.index;
}

} // namespace weir
