#include "coalesce/submit_keys.hpp"

#include "pg/compat.hpp"
#include "pg/settings.hpp"

extern "C" {
#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type_d.h"
#include "common/cryptohash.h"
#include "common/hashfn.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

static_assert(kRequestHashSize == PG_SHA256_DIGEST_LENGTH);

constexpr char kTable[] = "submitted_key";

// The fourth field of advisory locks; those of SQL have 1 and 2.
constexpr uint16 kLockOfKey = 0x7765;
constexpr uint16 kLockOfForgetting = 0x7766;

// One of the statements, its plan made once. Everything in them is qualified: they run under the search_path
// of whoever calls.
struct OwnStatement {
    const char *sql;
    SPIPlanPtr plan;
};

OwnStatement find_statement = {
    "SELECT request, \"rows\" FROM weir.submitted_key WHERE role OPERATOR(pg_catalog.=) $1 AND key "
    "OPERATOR(pg_catalog.=) $2 AND at OPERATOR(pg_catalog.>=) $3 FOR KEY SHARE",
    nullptr};
OwnStatement remember_statement = {
    "INSERT INTO weir.submitted_key AS k (role, key, request, \"rows\", at) VALUES ($1, $2, $4, $5, $6) ON "
    "CONFLICT (role, key) DO UPDATE SET request = EXCLUDED.request, \"rows\" = EXCLUDED.\"rows\", at = "
    "EXCLUDED.at WHERE k.at OPERATOR(pg_catalog.<) $3",
    nullptr};
OwnStatement forget_statement = {
    "DELETE FROM weir.submitted_key WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT ctid FROM "
    "weir.submitted_key WHERE at OPERATOR(pg_catalog.<) $3 ORDER BY at LIMIT $5 FOR UPDATE SKIP LOCKED))",
    nullptr};

constexpr int kParameters = 6;

// The parameters of all three: $1 role, $2 key, $3 how far back we remember, $4 request, $5 rows, or how
// many, $6 now.
struct Parameters {
    Datum values[kParameters];

    Parameters()
    {
        static_assert(sizeof(values) / sizeof(values[0]) == kParameters);
        const TimestampTz now = GetCurrentTimestamp();
        for (Datum &value : values)
            value = 0;
        values[2] = TimestampTzGetDatum(
            TimestampTzPlusMilliseconds(now, -static_cast<int64>(settings.submit_key_retention_s) * 1000));
        values[5] = TimestampTzGetDatum(now);
    }
};

Oid OwnerOfTable()
{
    const Oid schema = get_namespace_oid("weir", false);
    const Oid table = get_relname_relid(kTable, schema);
    HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
    if (!HeapTupleIsValid(tuple))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE), errmsg("table weir.%s does not exist", kTable)));
    const Oid owner = reinterpret_cast<Form_pg_class>(GETSTRUCT(tuple))->relowner;
    ReleaseSysCache(tuple);
    return owner;
}

// Executes it with the rights of the table's owner, as a foreign key's check is. An error's abort gives them
// back.
void ExecuteAsOwner(OwnStatement *statement, const Parameters &parameters, const char *nulls)
{
    static Oid types[kParameters] = {REGROLEOID, TEXTOID, TIMESTAMPTZOID, BYTEAOID, INT8OID, TIMESTAMPTZOID};
    Oid user;
    int context;
    GetUserIdAndSecContext(&user, &context);
    SetUserIdAndSecContext(OwnerOfTable(), context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
    if (statement->plan == nullptr) {
        SPIPlanPtr plan = SPI_prepare(statement->sql, kParameters, types);
        if (plan == nullptr)
            elog(ERROR, "pg_weir: SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
        SPI_keepplan(plan);
        statement->plan = plan;
    }
    const int code =
        SPI_execute_plan(statement->plan, const_cast<Datum *>(parameters.values), nulls, false, 0);
    if (code < 0)
        elog(ERROR, "pg_weir: SPI_execute_plan failed: %s", SPI_result_code_string(code));
    SetUserIdAndSecContext(user, context);
}

// Until the end of the transaction. A key of another hash value is another lock; two keys of one only wait in
// vain.
bool Lock(uint64 what, uint16 kind, bool wait)
{
    LOCKTAG tag;
    SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, static_cast<uint32>(what >> 32), static_cast<uint32>(what), kind);
    return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

Datum KeyOf(const Unit &unit)
{
    return PointerGetDatum(cstring_to_text_with_len(unit.key, static_cast<int>(unit.key_size)));
}

Datum RequestOf(const uint8 *request)
{
    auto *value = static_cast<bytea *>(palloc(VARHDRSZ + kRequestHashSize));
    SET_VARSIZE(value, VARHDRSZ + kRequestHashSize);
    memcpy(VARDATA(value), request, kRequestHashSize);
    return PointerGetDatum(value);
}

bool IsRequest(Datum remembered, const uint8 *request)
{
    const bytea *value = DatumGetByteaPP(remembered);
    return VARSIZE_ANY_EXHDR(value) == kRequestHashSize &&
           memcmp(VARDATA_ANY(value), request, kRequestHashSize) == 0;
}

void Update(pg_cryptohash_ctx *hash, const void *data, size_t size)
{
    if (pg_cryptohash_update(hash, static_cast<const uint8 *>(data), size) < 0)
        elog(ERROR, "pg_weir: could not compute a hash: %s", pg_cryptohash_error(hash));
}

} // namespace

void HashRequest(const Unit &unit, uint8 *request)
{
    pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
    if (pg_cryptohash_init(hash) < 0)
        elog(ERROR, "pg_weir: could not compute a hash: %s", pg_cryptohash_error(hash));
    Update(hash, &unit.sql_size, sizeof(unit.sql_size));
    Update(hash, unit.sql, unit.sql_size);
    for (uint32_t i = 0; i < unit.parameter_count; i++) {
        const UnitParameter &parameter = unit.parameters[i];
        const uint32_t size = parameter.text != nullptr ? parameter.size : UINT32_MAX;
        Update(hash, &size, sizeof(size));
        if (parameter.text != nullptr)
            Update(hash, parameter.text, size);
    }
    if (pg_cryptohash_final(hash, request, kRequestHashSize) < 0)
        elog(ERROR, "pg_weir: could not compute a hash: %s", pg_cryptohash_error(hash));
    pg_cryptohash_free(hash);
}

bool FindOutcome(const Unit &unit, const uint8 *request, int64 *rows)
{
    const Oid role = GetUserId();
    Lock(hash_bytes_extended(reinterpret_cast<const unsigned char *>(unit.key),
                             static_cast<int>(unit.key_size), role),
         kLockOfKey, true);
    Parameters parameters;
    parameters.values[0] = ObjectIdGetDatum(role);
    parameters.values[1] = KeyOf(unit);
    ExecuteAsOwner(&find_statement, parameters, "   nn ");
    if (SPI_processed == 0)
        return false;
    bool is_null;
    const TupleDesc columns = SPI_tuptable->tupdesc;
    if (!IsRequest(SPI_getbinval(SPI_tuptable->vals[0], columns, 1, &is_null), request))
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                 errmsg("key \"%s\" was used for another unit", unit.key),
                 errdetail("Its statements or parameters were different."),
                 errhint("Use a new key for each new unit, and the same only to try the same unit again.")));
    *rows = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], columns, 2, &is_null));
    SPI_freetuptable(SPI_tuptable);
    return true;
}

void RememberOutcome(const Unit &unit, const uint8 *request, int64 rows)
{
    Parameters parameters;
    parameters.values[0] = ObjectIdGetDatum(GetUserId());
    parameters.values[1] = KeyOf(unit);
    parameters.values[3] = RequestOf(request);
    parameters.values[4] = Int64GetDatum(rows);
    ExecuteAsOwner(&remember_statement, parameters, "      ");
    // The lock is ours: whoever remembered something did so after this transaction's snapshot was taken.
    if (SPI_processed == 0)
        ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                        errmsg("could not serialize access due to concurrent use of key \"%s\"", unit.key)));
}

uint64 ForgetOutcomes(int64 most)
{
    if (!Lock(0, kLockOfForgetting, false))
        return 0;
    SPI_connect();
    Parameters parameters;
    parameters.values[4] = Int64GetDatum(most);
    ExecuteAsOwner(&forget_statement, parameters, "nn n  ");
    const uint64 forgotten = SPI_processed;
    SPI_finish();
    return forgotten;
}

} // namespace weir
