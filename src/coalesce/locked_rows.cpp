#include "coalesce/locked_rows.hpp"

#include "pg/compat.hpp"
#include "pg/monotonic.hpp"

extern "C" {
#include "common/hashfn.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

struct LockedRow {
    Oid relation;
    uint32_t hash;
    int64_t until;
};

constexpr uint32_t kLockedRows = 64;
constexpr int64_t kRememberUs = USECS_PER_SEC;
LockedRow locked_rows[kLockedRows];

uint32_t HashOfRow(const RequestSlot &slot)
{
    return hash_bytes(reinterpret_cast<const unsigned char *>(slot.payload + slot.key_offset),
                      static_cast<int>(slot.key_size));
}

void Remember(Oid relation, uint32_t hash)
{
    locked_rows[hash % kLockedRows] = {relation, hash, MonotonicUs() + kRememberUs};
}

bool IsRemembered(Oid relation, uint32_t hash)
{
    const LockedRow &row = locked_rows[hash % kLockedRows];
    return row.relation == relation && row.hash == hash && row.until > MonotonicUs();
}

// ---- foreign keys ---------------------------------------------------------------------------------

constexpr uint32_t kForeignKeys = 16; // of a table; what is beyond is not remembered
constexpr uint32_t kNoted = 64;

struct ForeignKey {
    Oid parent;
    char name[2 * NAMEDATALEN + 8]; // of the parent, as the server writes it into its query
    int columns;
    AttrNumber numbers[INDEX_MAX_KEYS];
};

struct Parent {
    uint32_t key; // index in foreign_keys
    uint32_t hash;
};

ForeignKey foreign_keys[kForeignKeys];
uint32_t foreign_key_count = 0;
Parent noted[kNoted];
uint32_t noted_count = 0;

// False: the row refers to none by that key.
bool HashOfParent(const ForeignKey &key, TupleTableSlot *row, uint32_t *hash)
{
    const TupleDesc descriptor = row->tts_tupleDescriptor;
    *hash = key.parent;
    for (int i = 0; i < key.columns; i++) {
        bool is_null;
        const Datum value = slot_getattr(row, key.numbers[i], &is_null);
        if (is_null)
            return false;
        const Form_pg_attribute column = TupleDescAttr(descriptor, key.numbers[i] - 1);
        *hash = hash_combine(*hash, datum_image_hash(value, column->attbyval, column->attlen));
    }
    return true;
}

void Learn(const ForeignKeyCacheInfo &from, ForeignKey *key)
{
    const char *table = get_rel_name(from.confrelid);
    const char *schema = get_namespace_name(get_rel_namespace(from.confrelid));
    key->parent = from.confrelid;
    key->name[0] = '\0';
    // As the server quotes it, but for quotes in it: those are then not found, and every parent is taken for
    // locked.
    if (table != nullptr && schema != nullptr)
        snprintf(key->name, sizeof(key->name), "\"%s\".\"%s\"", schema, table);
    key->columns = from.nkeys;
    memcpy(key->numbers, from.conkey, sizeof(AttrNumber) * static_cast<size_t>(from.nkeys));
}

bool IsNamed(const ForeignKey &key, const char *context)
{
    return context != nullptr && key.name[0] != '\0' && strstr(context, key.name) != nullptr;
}

} // namespace

void RememberLockedRow(const RequestSlot &slot)
{
    Remember(slot.relation, HashOfRow(slot));
}

bool IsKeptLocked(const RequestSlot &slot)
{
    return IsRemembered(slot.relation, HashOfRow(slot));
}

bool LookAtParents(Relation relation)
{
    foreign_key_count = 0;
    noted_count = 0;
    ListCell *cell;
    foreach (cell, RelationGetFKeyList(relation))
        if (foreign_key_count < kForeignKeys)
            Learn(*static_cast<ForeignKeyCacheInfo *>(lfirst(cell)), &foreign_keys[foreign_key_count++]);
    return foreign_key_count > 0;
}

bool HasLockedParent(TupleTableSlot *row)
{
    for (uint32_t i = 0; i < foreign_key_count; i++) {
        uint32_t hash;
        if (HashOfParent(foreign_keys[i], row, &hash) && IsRemembered(foreign_keys[i].parent, hash))
            return true;
    }
    return false;
}

void NoParents()
{
    noted_count = 0;
}

void NoteParents(TupleTableSlot *row)
{
    for (uint32_t i = 0; i < foreign_key_count && noted_count < kNoted; i++) {
        uint32_t hash;
        if (HashOfParent(foreign_keys[i], row, &hash))
            noted[noted_count++] = {i, hash};
    }
}

void RememberLockedParents(const char *context)
{
    bool any_named = false;
    for (uint32_t i = 0; i < noted_count; i++)
        any_named = any_named || IsNamed(foreign_keys[noted[i].key], context);
    for (uint32_t i = 0; i < noted_count; i++) {
        const ForeignKey &key = foreign_keys[noted[i].key];
        if (!any_named || IsNamed(key, context))
            Remember(key.parent, noted[i].hash);
    }
    noted_count = 0;
}

} // namespace weir
