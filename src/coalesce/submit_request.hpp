#pragma once

// A unit of weir.submit() on its way to a worker: what is in the payload of the client's request slot.
//
// Texts end with a zero byte, which their size does not count, so that they can be read where they are. The
// answer, the number of rows, is the only thing that the worker writes here.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstddef>
#include <cstdint>

namespace weir
{

struct UnitParameter {
    const char *text; // null: NULL
    uint32_t size;
};

struct Unit {
    uint32_t role;        // SET ROLE; 0: none
    const char *settings; // see submit_settings.hpp
    uint32_t settings_size;
    const char *sql;
    uint32_t sql_size;
    const char *key; // null: none
    uint32_t key_size;
    const UnitParameter *parameters;
    uint32_t parameter_count;
};

constexpr uint32_t kMaxUnitParameters = 1000;

// False: it does not fit.
bool PackUnit(const Unit &unit, char *payload, size_t room) noexcept;

// `parameters` has room for kMaxUnitParameters. False: it is not a unit that PackUnit() made.
bool ReadUnit(const char *payload, size_t room, Unit *unit, UnitParameter *parameters) noexcept;

void SetUnitRows(char *payload, int64_t rows) noexcept;
int64_t UnitRows(const char *payload) noexcept;

} // namespace weir
