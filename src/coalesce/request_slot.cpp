#include "coalesce/request_slot.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr uint64_t kSequenceUnit = 1ull << 16;

uint64_t WithState(uint64_t word, RequestState state, uint32_t batch) noexcept
{
    return (word & ~(kSequenceUnit - 1)) | static_cast<uint64_t>(state) |
           (static_cast<uint64_t>(batch & 0xff) << 8);
}

} // namespace

// Sequentially consistent, as is the worker's change of its lane's state: the client then looks whether the
// worker is still there, and an ending worker looks for requests. One of them sees the other.
void RequestSlot::Publish() noexcept
{
    const uint64_t now = word.load(std::memory_order_relaxed);
    word.store(WithState(now, RequestState::kQueued, 0) + kSequenceUnit, std::memory_order_seq_cst);
}

bool RequestSlot::Withdraw() noexcept
{
    uint64_t now = word.load(std::memory_order_acquire);
    return StateOf(now) == RequestState::kQueued &&
           word.compare_exchange_strong(now, WithState(now, RequestState::kIdle, 0),
                                        std::memory_order_acq_rel);
}

void RequestSlot::Collect() noexcept
{
    const uint64_t now = word.load(std::memory_order_relaxed);
    word.store(WithState(now, RequestState::kIdle, 0), std::memory_order_relaxed);
}

bool RequestSlot::Abandon() noexcept
{
    uint64_t now = word.load(std::memory_order_acquire);
    return StateOf(now) == RequestState::kTaken &&
           word.compare_exchange_strong(now, WithState(now, RequestState::kAbandoned, 0),
                                        std::memory_order_acq_rel);
}

bool RequestSlot::Take(uint32_t batch) noexcept
{
    uint64_t now = word.load(std::memory_order_acquire);
    return StateOf(now) == RequestState::kQueued &&
           word.compare_exchange_strong(now, WithState(now, RequestState::kTaken, batch),
                                        std::memory_order_seq_cst);
}

void RequestSlot::Finish(Verdict how, GiveBack why, uint32_t rows_affected) noexcept
{
    if (!TryFinish(how, why, rows_affected))
        Drop();
}

bool RequestSlot::TryFinish(Verdict how, GiveBack why, uint32_t rows_affected) noexcept
{
    verdict = how;
    give_back = why;
    affected = rows_affected;
    uint64_t now = word.load(std::memory_order_acquire);
    return StateOf(now) == RequestState::kTaken &&
           word.compare_exchange_strong(now, WithState(now, RequestState::kDone, BatchOf(now)),
                                        std::memory_order_seq_cst);
}

void RequestSlot::Drop() noexcept
{
    const uint64_t now = word.load(std::memory_order_acquire);
    word.store(WithState(now, RequestState::kIdle, 0), std::memory_order_release);
}

// Value, then state, then `opening` again: while a batch is the open one its end is yet to come. If the world
// changes under every look, the caller's bounded sleep is the fallback.
bool WakeWords::Prepare(const RequestSlot &slot, std::atomic<uint32_t> **word, uint32_t *value) noexcept
{
    constexpr int kLooks = 8;
    for (int look = 0; look < kLooks; look++) {
        const uint32_t open = opening.load(std::memory_order_seq_cst);
        const uint64_t state = slot.Load();
        const bool taken = RequestSlot::StateOf(state) == RequestState::kTaken;
        if (!taken && RequestSlot::StateOf(state) != RequestState::kQueued)
            return false;
        *word = &words[IndexOf(taken ? RequestSlot::BatchOf(state) : open)];
        *value = (*word)->load(std::memory_order_seq_cst);
        if (slot.Load() == state && (taken || opening.load(std::memory_order_seq_cst) == open))
            break;
    }
    return true;
}

std::atomic<uint32_t> *WakeWords::End(uint32_t batch) noexcept
{
    std::atomic<uint32_t> *word = &words[IndexOf(batch)];
    word->fetch_add(1, std::memory_order_seq_cst);
    return word;
}

uint32_t RequestBitmap::Drain(std::atomic<uint64_t> *words, uint32_t slots, uint32_t from, uint32_t *out,
                              uint32_t most) noexcept
{
    const size_t count = Words(slots);
    uint32_t taken = 0;
    for (size_t step = 0; step < count && taken < most; step++) {
        const size_t i = (from / 64 + step) % count;
        uint64_t bits = words[i].load(std::memory_order_relaxed) != 0
                            ? words[i].exchange(0, std::memory_order_seq_cst)
                            : 0;
        for (; bits != 0 && taken < most; bits &= bits - 1)
            out[taken++] = static_cast<uint32_t>(i * 64 + static_cast<uint32_t>(__builtin_ctzll(bits)));
        if (bits != 0)
            words[i].fetch_or(bits, std::memory_order_seq_cst);
    }
    return taken;
}

} // namespace weir
