#include "stats/top_counts.hpp"

#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

bool IsContinuation(char c) noexcept
{
    return (static_cast<unsigned char>(c) & 0xc0) == 0x80;
}

// How many bytes of `name` an entry keeps.
size_t KeptLength(const char *name) noexcept
{
    const size_t length = strnlen(name, kTopNameSize);
    if (length < kTopNameSize)
        return length;

    // A character has at most 3 continuation bytes; with more of them it is not UTF-8, and any cut is good.
    size_t cut = kTopNameSize - 1;
    while (cut > kTopNameSize - 4 && IsContinuation(name[cut]))
        cut--;
    return IsContinuation(name[cut]) ? kTopNameSize - 1 : cut;
}

bool ComesBefore(const TopCount &a, const TopCount &b) noexcept
{
    return a.AtLeast() != b.AtLeast() ? a.AtLeast() > b.AtLeast() : a.count > b.count;
}

} // namespace

// Entries that are free need no case of their own: they stand behind all others, their count is the smallest,
// and there is no error to inherit.
void TopCounts::Add(const char *name) noexcept
{
    if (name == nullptr)
        name = "";
    const size_t length = KeptLength(name);
    TopCount *smallest = &entries[0];

    for (TopCount &entry : entries) {
        if (memcmp(entry.name, name, length) == 0 && entry.name[length] == '\0') {
            entry.count++;
            return;
        }
        if (entry.count < smallest->count)
            smallest = &entry;
    }
    memcpy(smallest->name, name, length);
    memset(smallest->name + length, 0, kTopNameSize - length);
    smallest->error = smallest->count;
    smallest->count++;
}

void TopCounts::Clear() noexcept
{
    *this = {};
}

uint32_t TopCounts::Top(uint32_t n, uint32_t *indexes) const noexcept
{
    uint32_t count = 0;

    if (n == 0)
        return 0;
    // Insertion into what has been found so far.
    for (uint32_t i = 0; i < kTopCounts; i++) {
        if (entries[i].count == 0 || (count == n && !ComesBefore(entries[i], entries[indexes[n - 1]])))
            continue;
        uint32_t at = count < n ? count++ : n - 1;
        for (; at > 0 && ComesBefore(entries[i], entries[indexes[at - 1]]); at--)
            indexes[at] = indexes[at - 1];
        indexes[at] = i;
    }
    return count;
}

} // namespace weir
