#include "coalesce/large_payload.hpp"

#include "pg/shared.hpp"

extern "C" {
#include "storage/dsm.h"
#include "utils/dsa.h"
#include "utils/memutils.h"
}

namespace weir
{

namespace
{

// So many of the largest fit.
constexpr size_t kSmallestShare = 4;

dsa_area *area = nullptr; // this process's mapping, once it has one
bool attach_failed = false;
RequestSlot *own = nullptr; // whose chunks are ours to free

LargeMemory &Memory()
{
    return shared->coalescing.large;
}

size_t MemorySize()
{
    return static_cast<size_t>(settings.coalesce_memory_kb) * 1024;
}

bool IsThere()
{
    return Memory().state.load() == static_cast<uint32_t>(LargeMemoryState::kThere);
}

// Into this process, for its lifetime. An error of the system is a reason to do without.
bool Attach()
{
    if (area != nullptr || attach_failed || !IsThere())
        return area != nullptr;
    const MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);
    PG_TRY();
    {
        dsm_segment *segment = dsm_attach(Memory().handle.load());
        if (segment == nullptr)
            elog(ERROR, "pg_weir: the memory for large requests is gone");
        dsm_pin_mapping(segment);
        area = dsa_attach_in_place(dsm_segment_address(segment), segment);
    }
    PG_CATCH();
    {
        FlushErrorState();
        attach_failed = true;
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
    return area != nullptr;
}

// 0: there is none.
uint64_t Allocate(size_t size)
{
    const dsa_pointer chunk =
        Attach() ? dsa_allocate_extended(area, size, DSA_ALLOC_NO_OOM) : InvalidDsaPointer;
    if (!DsaPointerIsValid(chunk)) {
        Memory().refused.fetch_add(1, std::memory_order_relaxed);
        return 0;
    }
    Memory().chunks.fetch_add(1, std::memory_order_relaxed);
    Memory().allocated.fetch_add(1, std::memory_order_relaxed);
    return chunk;
}

void Free(uint64_t *chunk)
{
    if (*chunk == 0 || !Attach())
        return;
    dsa_free(area, *chunk);
    Memory().chunks.fetch_sub(1, std::memory_order_relaxed);
    *chunk = 0;
}

char *AddressOf(uint64_t chunk)
{
    if (!Attach())
        elog(ERROR, "pg_weir: the memory for large requests cannot be used");
    return static_cast<char *>(dsa_get_address(area, chunk));
}

void Make()
{
    const size_t size = MemorySize();
    dsm_segment *segment = dsm_create(size, 0);
    dsm_pin_mapping(segment);
    area = dsa_create_in_place(dsm_segment_address(segment), size, gate_lock->tranche, segment);
    dsa_pin(area);
    dsa_set_size_limit(area, size);
    dsm_pin_segment(segment);
    Memory().handle.store(dsm_segment_handle(segment));
}

} // namespace

size_t LargestPayload()
{
    return MemorySize() / kSmallestShare;
}

char *AllocateLargePayload(RequestSlot *slot, size_t size)
{
    if (size > LargestPayload())
        return nullptr;
    auto none = static_cast<uint32_t>(LargeMemoryState::kNone);
    if (!IsThere()) {
        Memory().state.compare_exchange_strong(none, static_cast<uint32_t>(LargeMemoryState::kWanted));
        return nullptr;
    }
    slot->large = Allocate(size);
    if (slot->large == 0)
        return nullptr;
    own = slot;
    return AddressOf(slot->large);
}

void OwnLargePayloads(RequestSlot *slot)
{
    if (slot->large != 0 || slot->returned_large != 0)
        own = slot;
}

void DisownLargePayloads()
{
    own = nullptr;
}

void FreeOwnLargePayloads()
{
    if (own == nullptr)
        return;
    FreeLargePayloads(own);
    own = nullptr;
}

void MakeLargeMemory()
{
    auto wanted = static_cast<uint32_t>(LargeMemoryState::kWanted);
    if (Memory().state.load(std::memory_order_relaxed) != wanted ||
        !Memory().state.compare_exchange_strong(wanted, static_cast<uint32_t>(LargeMemoryState::kMaking)))
        return;
    volatile LargeMemoryState state = LargeMemoryState::kThere;
    const MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);
    PG_TRY();
    {
        Make();
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        ErrorData *error = CopyErrorData();
        FlushErrorState();
        ereport(LOG, (errmsg("pg_weir: no memory for large requests: %s", error->message),
                      errdetail("Statements of more than 8 kB are not coalesced until the server is "
                                "restarted."),
                      errhint("Consider decreasing weir.coalesce_memory.")));
        FreeErrorData(error);
        area = nullptr;
        // Our own end interrupts it, too: then it is the next worker's.
        attach_failed = !ProcDiePending;
        state = ProcDiePending ? LargeMemoryState::kNone : LargeMemoryState::kFailed;
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
    Memory().state.store(static_cast<uint32_t>(state));
}

char *AllocateReturnedRow(RequestSlot *slot, size_t size)
{
    FreeReturnedRow(slot);
    slot->returned_large = size <= LargestPayload() ? Allocate(size) : 0;
    if (slot->returned_large == 0)
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("pg_weir: the row that RETURNING asks for does not fit")));
    return AddressOf(slot->returned_large);
}

void FreeReturnedRow(RequestSlot *slot)
{
    Free(&slot->returned_large);
}

void FreeLargePayloads(RequestSlot *slot)
{
    Free(&slot->large);
    Free(&slot->returned_large);
}

char *BodyOf(const RequestSlot &slot)
{
    return slot.large != 0 ? AddressOf(slot.large) : const_cast<char *>(slot.payload);
}

char *ReturnedRowOf(const RequestSlot &slot)
{
    return slot.returned_large != 0 ? AddressOf(slot.returned_large)
                                    : const_cast<char *>(slot.payload) + slot.returned_offset;
}

} // namespace weir
