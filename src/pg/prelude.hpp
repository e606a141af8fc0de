#pragma once

// The only file that includes postgres.h. Standard headers come first: postgres.h redefines names they use.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

extern "C" {
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
}

// A function that SQL calls. Before version 16 PGDLLEXPORT does not undo -fvisibility=hidden.
#define WEIR_SQL_FUNCTION(name)                                                                              \
    _Pragma("GCC visibility push(default)") extern "C"                                                       \
    {                                                                                                        \
        PG_FUNCTION_INFO_V1(name);                                                                           \
        Datum name(PG_FUNCTION_ARGS);                                                                        \
    }                                                                                                        \
    _Pragma("GCC visibility pop") Datum name([[maybe_unused]] PG_FUNCTION_ARGS)
