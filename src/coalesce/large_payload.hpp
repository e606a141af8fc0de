#pragma once

// Memory for what does not fit into request slots: rows and values of more than 8 kB, and rows that RETURNING
// asks for. One dynamic segment of weir.coalesce_memory, made by a worker when a client first wants it, kept
// until the server ends, and never enlarged: in it is an area from which chunks are allocated, by clients and
// workers, without an error. What finds no room goes the ordinary way.
//
// Who frees a chunk:
//   the client that allocated it, when its transaction ends, however that is;
//   the same for the row that came back with the answer;
//   the worker, if the client has abandoned its request (it may still be read then), and rows that it made
//   for a request which then was not committed.
// A process that is killed takes shared memory with it.

#include "coalesce/request_slot.hpp"
#include "pg/prelude.hpp"

namespace weir
{

// The memory's state is in CoalesceShared. Written: kNone ──▶ kWanted by clients, then by one worker.
enum class LargeMemoryState : uint32_t { kNone, kWanted, kMaking, kThere, kFailed };

// The largest payload that may be asked for; 0: none.
size_t LargestPayload();

// ---- a client ----

// Room for this backend's request, put down in its slot, until the transaction ends. Null: there is none.
char *AllocateLargePayload(RequestSlot *slot, size_t size);

// The answer has come: what is in the slot is ours.
void OwnLargePayloads(RequestSlot *slot);

// The request is abandoned: its worker frees them.
void DisownLargePayloads();

// At the end of the transaction.
void FreeOwnLargePayloads();

// ---- a worker ----

// Between batches: makes the memory if somebody wants it. Without an error.
void MakeLargeMemory();

// Room for a returned row. Raises an error if there is none.
char *AllocateReturnedRow(RequestSlot *slot, size_t size);

void FreeReturnedRow(RequestSlot *slot);
void FreeLargePayloads(RequestSlot *slot); // of a request that nobody collects

// ---- both ----

// Where the rows or the values of a request begin, and the row it returned. May raise an error in a process
// that has not used the memory before.
char *BodyOf(const RequestSlot &slot);
char *ReturnedRowOf(const RequestSlot &slot);

} // namespace weir
