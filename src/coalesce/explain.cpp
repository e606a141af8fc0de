// weir.coalesce_explain(): whether a statement would be coalesced, and why not. It is planned as it would be,
// and the interceptor is asked; nothing is executed.

#include "coalesce/interceptor.hpp"
#include "coalesce/opt_in.hpp"
#include "pg/compat.hpp"
#include "pg/shared.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "nodes/params.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
}

namespace weir
{

namespace
{

struct Explanation {
    Oid relation;
    Decline why;
    const char *reason; // not null: instead of that
    const char *detail;
};

// The plan, or null: none that writes. Parameters have their types, and no values.
PlannedStmt *PlanOf(const char *sql, ParamListInfo *parameters)
{
    List *parsed = pg_parse_query(sql);
    if (list_length(parsed) != 1)
        ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("exactly one statement can be explained")));
    Oid *types = nullptr;
    int count = 0;
    List *queries =
        pg_analyze_and_rewrite_varparams(linitial_node(RawStmt, parsed), sql, &types, &count, nullptr);
    *parameters = makeParamList(count);
    for (int i = 0; i < count; i++)
        (*parameters)->params[i] = {0, true, 0, types[i]};
    List *plans = pg_plan_queries(queries, sql, CURSOR_OPT_PARALLEL_OK, nullptr);
    return list_length(plans) == 1 ? linitial_node(PlannedStmt, plans) : nullptr;
}

void Judge(QueryDesc *query_desc, Explanation *explanation)
{
    Relation relation =
        reinterpret_cast<const ModifyTableState *>(query_desc->planstate)->rootResultRelInfo->ri_RelationDesc;
    explanation->relation = RelationGetRelid(relation);
    const TableFacts *known = FactsOf(relation);
    if (known == nullptr) {
        explanation->reason = "not opted in";
        explanation->detail = "See weir.coalesce_table().";
    } else if (CurrentMode() != Mode::kEnforce || !settings.coalesce) {
        explanation->reason = "off";
        explanation->detail = "weir.mode is not enforce, or weir.coalesce is off.";
    } else {
        const TableFacts facts = *known;
        explanation->why = Foresee(query_desc, relation, facts);
    }
}

Explanation Explain(const char *sql)
{
    Explanation explanation = {InvalidOid, Decline::kStatement, nullptr, nullptr};
    ParamListInfo parameters;
    PlannedStmt *plan = PlanOf(sql, &parameters);
    if (plan == nullptr || plan->commandType == CMD_UTILITY || plan->planTree == nullptr ||
        !IsA(plan->planTree, ModifyTable))
        return explanation;
    QueryDesc *query_desc = CreateQueryDesc(plan, sql, GetActiveSnapshot(), InvalidSnapshot, None_Receiver,
                                            parameters, nullptr, 0);
    ExecutorStart(query_desc, EXEC_FLAG_EXPLAIN_ONLY); // with its permission checks
    const MemoryContext previous = MemoryContextSwitchTo(query_desc->estate->es_query_cxt);
    Judge(query_desc, &explanation);
    MemoryContextSwitchTo(previous);
    ExecutorEnd(query_desc);
    FreeQueryDesc(query_desc);
    return explanation;
}

} // namespace

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_coalesce_explain)
{
    RequireShared();
    const Explanation explanation = Explain(text_to_cstring(PG_GETARG_TEXT_PP(0)));
    const bool coalesced = explanation.reason == nullptr && explanation.why == Decline::kNone;
    Row row;
    if (OidIsValid(explanation.relation))
        row.Put(ObjectIdGetDatum(explanation.relation));
    else
        row.PutNull();
    row.PutBool(coalesced);
    if (coalesced)
        row.PutNull();
    else
        row.PutText(explanation.reason != nullptr ? explanation.reason : DeclineName(explanation.why));
    row.PutText(explanation.reason != nullptr ? explanation.detail : DeclineDetail(explanation.why));
    return ReturnRow(fcinfo, &row);
}
