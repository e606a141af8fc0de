#include "coalesce/submit_request.hpp"

#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr uint32_t kNull = 0xffffffff;

struct Header {
    int64_t rows;
    uint32_t size; // of all
    uint32_t role;
    uint32_t settings_size;
    uint32_t sql_size;
    uint32_t key_size; // kNull: no key
    uint32_t parameter_count;
};

// Writes, or reads, one after the other; never beyond the end.
struct Cursor {
    size_t at;
    size_t end;

    bool Has(size_t size) const noexcept { return size <= end - at; }
};

bool Put(char *payload, Cursor *cursor, const char *text, uint32_t size) noexcept
{
    if (!cursor->Has(static_cast<size_t>(size) + 1))
        return false;
    if (size > 0)
        memcpy(payload + cursor->at, text, size);
    payload[cursor->at + size] = '\0';
    cursor->at += static_cast<size_t>(size) + 1;
    return true;
}

bool Get(const char *payload, Cursor *cursor, uint32_t size, const char **text) noexcept
{
    if (!cursor->Has(static_cast<size_t>(size) + 1) || payload[cursor->at + size] != '\0')
        return false;
    *text = payload + cursor->at;
    cursor->at += static_cast<size_t>(size) + 1;
    return true;
}

bool PutParameter(char *payload, Cursor *cursor, const UnitParameter &parameter) noexcept
{
    const uint32_t size = parameter.text == nullptr ? kNull : parameter.size;
    if (!cursor->Has(sizeof(size)))
        return false;
    memcpy(payload + cursor->at, &size, sizeof(size));
    cursor->at += sizeof(size);
    return size == kNull || Put(payload, cursor, parameter.text, size);
}

bool GetParameter(const char *payload, Cursor *cursor, UnitParameter *parameter) noexcept
{
    if (!cursor->Has(sizeof(parameter->size)))
        return false;
    memcpy(&parameter->size, payload + cursor->at, sizeof(parameter->size));
    cursor->at += sizeof(parameter->size);
    parameter->text = nullptr;
    return parameter->size == kNull || Get(payload, cursor, parameter->size, &parameter->text);
}

} // namespace

bool PackUnit(const Unit &unit, char *payload, size_t room) noexcept
{
    Cursor cursor = {sizeof(Header), room};
    if (room < sizeof(Header) || unit.parameter_count > kMaxUnitParameters)
        return false;
    if (!Put(payload, &cursor, unit.settings, unit.settings_size) ||
        !Put(payload, &cursor, unit.sql, unit.sql_size) ||
        (unit.key != nullptr && !Put(payload, &cursor, unit.key, unit.key_size)))
        return false;
    for (uint32_t i = 0; i < unit.parameter_count; i++)
        if (!PutParameter(payload, &cursor, unit.parameters[i]))
            return false;
    const Header header = {
        0,
        static_cast<uint32_t>(cursor.at),
        unit.role,
        unit.settings_size,
        unit.sql_size,
        unit.key != nullptr ? unit.key_size : kNull,
        unit.parameter_count,
    };
    memcpy(payload, &header, sizeof(header));
    return true;
}

bool ReadUnit(const char *payload, size_t room, Unit *unit, UnitParameter *parameters) noexcept
{
    Header header;
    if (room < sizeof(header))
        return false;
    memcpy(&header, payload, sizeof(header));
    if (header.size < sizeof(header) || header.size > room || header.parameter_count > kMaxUnitParameters)
        return false;
    Cursor cursor = {sizeof(header), header.size};
    *unit = {header.role, nullptr,    header.settings_size,  nullptr, header.sql_size, nullptr,
             0,           parameters, header.parameter_count};
    if (!Get(payload, &cursor, header.settings_size, &unit->settings) ||
        !Get(payload, &cursor, header.sql_size, &unit->sql))
        return false;
    if (header.key_size != kNull) {
        unit->key_size = header.key_size;
        if (!Get(payload, &cursor, header.key_size, &unit->key))
            return false;
    }
    for (uint32_t i = 0; i < header.parameter_count; i++)
        if (!GetParameter(payload, &cursor, &parameters[i]))
            return false;
    return true;
}

void SetUnitRows(char *payload, int64_t rows) noexcept
{
    memcpy(payload + offsetof(Header, rows), &rows, sizeof(rows));
}

int64_t UnitRows(const char *payload) noexcept
{
    int64_t rows;
    memcpy(&rows, payload + offsetof(Header, rows), sizeof(rows));
    return rows;
}

} // namespace weir
