#pragma once

// Rows in the making, for the SQL functions behind the views.

#include "pg/compat.hpp"
#include "pg/shared.hpp"
#include "stats/histogram.hpp"

extern "C" {
#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
}

namespace weir
{

// One row in the making: a cursor over its columns.
struct Row {
    static constexpr int kMaxColumns = 40;
    Datum values[kMaxColumns];
    bool nulls[kMaxColumns];
    int count = 0;

    void Put(Datum value)
    {
        nulls[count] = false;
        values[count++] = value;
    }
    void PutNull()
    {
        nulls[count] = true;
        values[count++] = 0;
    }
    void PutText(const char *text) { Put(CStringGetTextDatum(text)); }
    void PutBool(bool value) { Put(BoolGetDatum(value)); }
    void PutInt(uint32_t value) { Put(Int32GetDatum(static_cast<int32>(value))); }
    void PutIntOrNull(bool known, uint32_t value) { known ? PutInt(value) : PutNull(); }
    void PutCount(uint64_t value) { Put(Int64GetDatum(static_cast<int64>(value))); }
    void PutReal(float value) { Put(Float4GetDatum(value)); }
    void PutTime(TimestampTz value) { Put(TimestampTzGetDatum(value)); }
    void PutInterval(int64_t us)
    {
        auto *interval = static_cast<Interval *>(palloc0(sizeof(Interval)));
        interval->time = us;
        Put(IntervalPGetDatum(interval));
    }
};

inline void PutWaits(Row *row, const HistogramSnapshot &waits)
{
    if (waits.Count() == 0) {
        for (int i = 0; i < 4; i++)
            row->PutNull();
        return;
    }
    const double fractions[] = {0.5, 0.95, 0.99};
    for (const double fraction : fractions)
        row->PutInterval(static_cast<int64_t>(waits.Percentile(fraction)));
    row->PutInterval(static_cast<int64_t>(waits.MaxUs()));
}

// The preloaded library, not one that a session loaded: then there would be no shared memory.
inline void RequireShared()
{
    if (shared == nullptr)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("pg_weir is not loaded"),
                        errhint("Add pg_weir to shared_preload_libraries and restart the server.")));
}

inline Datum ReturnRow(FunctionCallInfo fcinfo, Row *row)
{
    TupleDesc descriptor;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE ||
        descriptor->natts != row->count)
        elog(ERROR, "pg_weir: the library and the SQL objects are of different versions");
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), row->values, row->nulls));
}

inline ReturnSetInfo *BeginRows(FunctionCallInfo fcinfo)
{
    RequireShared();
    InitMaterializedSRF(fcinfo, 0);
    return reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
}

inline void AddRow(ReturnSetInfo *result, Row *row)
{
    if (result->setDesc->natts != row->count)
        elog(ERROR, "pg_weir: the library and the SQL objects are of different versions");
    tuplestore_putvalues(result->setResult, result->setDesc, row->values, row->nulls);
}

} // namespace weir
