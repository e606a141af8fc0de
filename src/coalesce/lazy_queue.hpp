#pragma once

// Requests whose clients were answered already (weir.coalesce_ack = queued): a pool of request slots, and in
// it a list for each lane, in the order in which the clients were answered.
//
// A request stays in its list until it is written or has failed: a worker that dies in between leaves
// everything to the next one. A free slot is in the free list; the last one that was given back is used
// first, so that no more memory is touched than was needed once.
//
// Everything is under lazy_lock, but for what a link says is the worker's. A process that is killed takes
// shared memory with it.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>

namespace weir
{

constexpr uint32_t kNoLazy = UINT32_MAX;

// What is known of the request in the pool's slot of the same index.
struct LazyLink {
    uint32_t previous;
    uint32_t next;
    uint64_t number; // moves on with each request of the server
    uint32_t session;
    uint32_t role; // whose request it was

    // The worker's of its lane.
    bool alone;         // a batch with it failed: to be executed by itself
    bool was_locked;    // ... and last time had to wait for a lock
    uint8_t tries;      // batches in which others' errors left no time for it
    int64_t not_before; // not to be tried before (MonotonicUs)
};

struct LazyList {
    uint32_t first_plus_one; // 0: empty
    uint32_t last_plus_one;
    uint32_t count;
};

struct LazyPool {
    uint32_t free_plus_one;
    uint32_t unused; // slots from here on have never been used
    uint64_t next_number;
};

class LazyQueue
{
  public:
    void Attach(LazyPool *pool, LazyLink *links, uint32_t count) noexcept
    {
        pool_ = pool;
        links_ = links;
        count_ = count;
    }

    uint32_t Capacity() const noexcept { return count_; }

    // A slot for a request, which is last in the list; kNoLazy: all are in use.
    uint32_t Push(LazyList *list, uint32_t session, uint32_t role) noexcept;
    void Remove(LazyList *list, uint32_t index) noexcept;

    LazyLink &Link(uint32_t index) noexcept { return links_[index]; }
    static uint32_t First(const LazyList &list) noexcept { return list.first_plus_one - 1; }
    uint32_t Next(uint32_t index) const noexcept { return links_[index].next; }

    // The last number given: what is queued now is numbered so at most.
    uint64_t LastNumber() const noexcept { return pool_->next_number; }
    // Whether the list has none that is numbered so, or lower.
    bool IsPast(const LazyList &list, uint64_t number) const noexcept
    {
        return list.first_plus_one == 0 || links_[First(list)].number > number;
    }

  private:
    LazyPool *pool_;
    LazyLink *links_;
    uint32_t count_;
};

// The requests of a session are executed in its order where it can matter: those of one table may share a
// batch, and whoever comes after one of another table waits until that is done. One for each session, local
// to the worker, anew for each scan (`round`).
struct LazySession {
    uint32_t round;
    uint32_t relation; // of its requests seen so far; 0: of several, no more may be executed now

    // Whether its next request may be executed in this round, too.
    bool Admits(uint32_t this_round, uint32_t of_relation) noexcept
    {
        if (round != this_round) {
            round = this_round;
            relation = of_relation;
        } else if (relation != of_relation)
            relation = 0;
        return relation == of_relation;
    }
};

} // namespace weir
