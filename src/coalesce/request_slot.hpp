#pragma once

// A client's request to a coalescing worker, in shared memory: one slot per backend, at the index of its
// PGPROC. A backend has at most one request, so nothing is allocated, and a queue of requests is a set of
// backends: a bitmap. (A ring per backend, as spsc_queue would be, holds one element here; the bitmap is that
// ring with the hint "look at me" merged into one word per 64 backends, which the worker scans at once.)
//
// The state word is the truth about a request; the bitmap only says where to look.
//
// clang-format off
//   kIdle     ──publish──▶ kQueued       by the client
//   kQueued   ──take─────▶ kTaken        by the worker, compare-and-swap
//   kQueued   ──withdraw─▶ kIdle         by the client, compare-and-swap: cancelled, or the worker is gone
//   kTaken    ──finish───▶ kDone         by the worker: verdict and numbers are in the slot
//   kDone     ──collect──▶ kIdle         by the client
//   kTaken    ──abandon──▶ kAbandoned    by the client, compare-and-swap: its session ends
//   kAbandoned ─finish───▶ kIdle         by the worker
// clang-format on
//
// From kTaken on the client does not leave: its payload is read, and its row may be written. The worker ends
// every batch, also when it dies of an error, so that this wait is as long as a commit. A commit that waits
// for a standby may last for ever: a client that is terminated then abandons its request, and whoever gets
// its PGPROC next sends none before the worker has finished that.
//
// Waking. A batch's clients sleep on one word and are woken by one call. `opening` is the number of the batch
// that the next scan fills. A client that sees itself still queued after it has read `opening` sleeps on that
// batch's word; one that was taken knows its batch. If a scan overlooked the client, it is woken once in vain
// and looks again. Words are reused after kWakeWords batches; each is a counter, so that a wake-up between a
// client's look and its sleep is not lost (FUTEX_WAIT compares).
//
// Death. An ending worker finishes what it has taken. A process that is killed takes shared memory with it,
// and the crash restart begins with Init().
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace weir
{

enum class RequestState : uint32_t { kIdle, kQueued, kTaken, kDone, kAbandoned };

enum class RequestKind : uint8_t { kInsert, kUpdate, kDelete };

enum class Verdict : uint8_t {
    kNotExecuted,      // nothing was written: the client runs its statement itself
    kCommitted,        // durable as its synchronous_commit asks, and visible
    kCommittedLocally, // durable here; waiting for the standbys was interrupted
    kUnknown           // nobody can know
};

// Why a worker gave a request back. The names are in the view weir.stat_coalesce.
enum class GiveBack : uint8_t {
    kNone,
    kRelationLocked, // the worker would have had to wait for the table
    kRowLocked,      // ... for a row, longer than weir.coalesce_lock_timeout
    kError,          // the request, or its batch, failed: its own run says why
    kBatchMate,      // two attempts of its batch failed because of others
    kWorkerEnding,
    kWithdrawn, // taken back by the client: the worker was gone or stalled
    kSettings,  // weir.submit(): the worker could not make its session like the client's
    kTooSlow,   // ... it ran for too long
    kStatement, // ... it has a statement, or temporary tables, that belong into the client's session
    kCount
};

struct alignas(128) RequestSlot {
    static constexpr size_t kSize = 8192;
    static constexpr size_t kPayloadSize = kSize - 128;
    static constexpr int kMaxArbiters = 4;

    // Bits 0-7: RequestState. 8-15: low bits of the batch that took it. 16-63: a number that moves on with
    // each request, so that a compare-and-swap cannot hit a later one.
    std::atomic<uint64_t> word;

    // Written by the client while kIdle, read by the worker while kTaken.
    uint32_t relation;
    uint32_t statistics; // the table's entry
    RequestKind kind;
    uint8_t synchronous_commit; // the level that it asks for
    bool returns;               // UPDATE, DELETE: the row is wanted
    bool skips_conflicts;       // ON CONFLICT DO NOTHING, on these indexes; none: on any
    uint8_t arbiter_count;
    uint16_t rows; // of an INSERT
    uint32_t arbiters[kMaxArbiters];
    uint32_t key_offset; // what requests of one row have in common, byte for byte
    uint32_t key_size;
    uint32_t shape_offset; // UPDATE, DELETE: expressions
    uint32_t shape_size;
    uint32_t values_offset; // their values
    uint32_t values_count;
    uint32_t bytes; // of the payload
    uint32_t database;
    uint32_t role; // of its session
    uint64_t shape_hash;
    uint64_t large;            // where rows or values are, if not in the payload: see large_payload.hpp
    uint64_t returned_columns; // bit 0: column 1; bit 63: column 64 or any after it
    uint32_t row_type;         // of a queued request: what the table's columns were when it was answered

    // Written by the worker while kTaken, read by the client when kDone.
    uint32_t affected;
    Verdict verdict;
    GiveBack give_back;
    uint32_t returned_offset; // in the payload, of the row that the request made or deleted
    uint64_t returned_large;  // or where it is, if it did not fit; then freed by the client

    alignas(64) char payload[kPayloadSize];

    static uint64_t ColumnBit(int column) noexcept { return uint64_t{1} << (column < 64 ? column - 1 : 63); }
    static RequestState StateOf(uint64_t word) noexcept { return static_cast<RequestState>(word & 0xff); }
    static uint32_t BatchOf(uint64_t word) noexcept { return static_cast<uint32_t>(word >> 8) & 0xff; }
    uint64_t Load() const noexcept { return word.load(std::memory_order_seq_cst); }

    // The client: what it wrote is now to be read. It must be kIdle.
    void Publish() noexcept;
    // The client: true: it is idle again, nobody will execute it. False: a worker has it.
    bool Withdraw() noexcept;
    // The client, when kDone.
    void Collect() noexcept;
    // The client: true: nobody will collect the answer. False: it is there, or no worker has the request.
    bool Abandon() noexcept;

    // The worker. False: the client withdrew it, or never published.
    bool Take(uint32_t batch) noexcept;
    void Finish(Verdict verdict, GiveBack give_back, uint32_t affected) noexcept;
    // The same in two steps, if something is to be done before a slot is idle that nobody collects. False: it
    // is abandoned, and Drop() is to follow.
    bool TryFinish(Verdict verdict, GiveBack give_back, uint32_t affected) noexcept;
    void Drop() noexcept;
};

static_assert(sizeof(RequestSlot) == RequestSlot::kSize);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

constexpr uint32_t kWakeWords = 4; // a power of two

struct WakeWords {
    std::atomic<uint32_t> opening;
    std::atomic<uint32_t> words[kWakeWords];

    static uint32_t IndexOf(uint32_t batch) noexcept { return batch & (kWakeWords - 1); }

    // What a client with that slot sleeps on, until it is not `value` any more. False: it need not sleep, its
    // request is done.
    bool Prepare(const RequestSlot &slot, std::atomic<uint32_t> **word, uint32_t *value) noexcept;

    // The worker, after it has finished all of batch's slots: returns the word to wake.
    std::atomic<uint32_t> *End(uint32_t batch) noexcept;
};

// Backends that have published a request.
class RequestBitmap
{
  public:
    static size_t Words(uint32_t slots) noexcept { return (slots + 63) / 64; }

    static void Set(std::atomic<uint64_t> *words, uint32_t slot) noexcept
    {
        words[slot / 64].fetch_or(1ull << (slot % 64), std::memory_order_seq_cst);
    }
    static void Clear(std::atomic<uint64_t> *words, uint32_t slot) noexcept
    {
        words[slot / 64].fetch_and(~(1ull << (slot % 64)), std::memory_order_seq_cst);
    }
    static bool Any(const std::atomic<uint64_t> *words, uint32_t slots) noexcept
    {
        for (size_t i = 0; i < Words(slots); i++)
            if (words[i].load(std::memory_order_seq_cst) != 0)
                return true;
        return false;
    }

    // Takes up to `most` out of the bitmap, from slot `from` on and around. Returns how many.
    static uint32_t Drain(std::atomic<uint64_t> *words, uint32_t slots, uint32_t from, uint32_t *out,
                          uint32_t most) noexcept;
};

} // namespace weir
