#include "coalesce/lazy_queue.hpp"

#include "pure_only.hpp"

namespace weir
{

uint32_t LazyQueue::Push(LazyList *list, uint32_t session, uint32_t role) noexcept
{
    uint32_t index = kNoLazy;
    if (pool_->free_plus_one != 0) {
        index = pool_->free_plus_one - 1;
        pool_->free_plus_one = links_[index].next + 1;
    } else if (pool_->unused < count_)
        index = pool_->unused++;
    if (index == kNoLazy)
        return index;
    links_[index] = {
        list->last_plus_one - 1, kNoLazy, ++pool_->next_number, session, role, false, false, 0, 0};
    if (list->last_plus_one != 0)
        links_[list->last_plus_one - 1].next = index;
    else
        list->first_plus_one = index + 1;
    list->last_plus_one = index + 1;
    list->count++;
    return index;
}

// kNoLazy + 1 is 0: no neighbour, no number.
void LazyQueue::Remove(LazyList *list, uint32_t index) noexcept
{
    const uint32_t previous = links_[index].previous;
    const uint32_t next = links_[index].next;
    if (previous != kNoLazy)
        links_[previous].next = next;
    else
        list->first_plus_one = next + 1;
    if (next != kNoLazy)
        links_[next].previous = previous;
    else
        list->last_plus_one = previous + 1;
    list->count--;
    links_[index].next = pool_->free_plus_one - 1;
    pool_->free_plus_one = index + 1;
}

} // namespace weir
