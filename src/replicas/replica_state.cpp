#include "replicas/replica_state.hpp"

#include <cstring>

#include "admission/class_map.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

void CopyPart(const char *from, size_t length, char (&to)[kReplicaNameSize]) noexcept
{
    if (length >= kReplicaNameSize)
        length = kReplicaNameSize - 1;
    memcpy(to, from, length);
    to[length] = '\0';
}

bool SameAddress(const Address &a, const Address &b) noexcept
{
    return a.family == b.family && memcmp(a.bytes, b.bytes, sizeof(a.bytes)) == 0;
}

bool IsOf(const ReplicaRow &row, const char *application_name, const Address &address) noexcept
{
    return strcmp(row.application_name, application_name) == 0 && SameAddress(row.address, address);
}

// What stands between two commas, without the blanks around it.
struct Part {
    const char *begin; // null: there is none
    size_t length;
    const char *rest; // after the comma, or the end
};

Part FirstPart(const char *text) noexcept
{
    if (*text == '\0')
        return {nullptr, 0, text};
    const char *end = text + strcspn(text, ",");
    const char *rest = *end == ',' ? end + 1 : end;
    while (text < end && *text == ' ')
        text++;
    while (end > text && end[-1] == ' ')
        end--;
    return {text, static_cast<size_t>(end - text), rest};
}

Part NextPart(const Part &part) noexcept
{
    return FirstPart(part.rest);
}

} // namespace

const char *ReplicaStateName(ReplicaState state) noexcept
{
    switch (state) {
    case ReplicaState::kUnknown:
        return "unknown";
    case ReplicaState::kStreaming:
        return "streaming";
    case ReplicaState::kCatchup:
        return "catchup";
    case ReplicaState::kArchive:
        return "archive";
    case ReplicaState::kPaused:
        return "paused";
    case ReplicaState::kDisconnected:
        return "disconnected";
    }
    return "unknown";
}

void SplitName(const char *name, char (&region)[kReplicaNameSize], char (&node)[kReplicaNameSize]) noexcept
{
    const char *slash = strchr(name, '/');
    if (slash == nullptr)
        region[0] = '\0';
    else
        CopyPart(name, static_cast<size_t>(slash - name), region);
    const char *after = slash != nullptr ? slash + 1 : name;
    CopyPart(after, strlen(after), node);
}

bool NameIsListed(const char *patterns, const char *name) noexcept
{
    char pattern[kMaxPatternSize];
    for (Part part = FirstPart(patterns); part.begin != nullptr; part = NextPart(part)) {
        if (part.length == 0 || part.length >= kMaxPatternSize)
            continue;
        memcpy(pattern, part.begin, part.length);
        pattern[part.length] = '\0';
        if (GlobMatches(pattern, name))
            return true;
    }
    return false;
}

bool PatternsAreShort(const char *patterns) noexcept
{
    for (Part part = FirstPart(patterns); part.begin != nullptr; part = NextPart(part))
        if (part.length >= kMaxPatternSize)
            return false;
    return true;
}

ReplicaRow *RowFor(ReplicasShared *replicas, const char *application_name, const Address &address) noexcept
{
    ReplicaRow *found = nullptr; // of those that may be taken: free, else longest gone
    for (ReplicaRow &row : replicas->report.rows) {
        if (row.in_use && row.pid != 0)
            continue;
        if (row.in_use && IsOf(row, application_name, address))
            return &row;
        if (found == nullptr || (found->in_use && (!row.in_use || row.connected_us < found->connected_us)))
            found = &row;
    }
    if (found == nullptr)
        return nullptr;
    *found = {};
    found->in_use = true;
    found->serial = ++replicas->memory.next_serial;
    CopyPart(application_name, strlen(application_name), found->application_name);
    found->address = address;
    SplitName(found->application_name, found->region, found->node);
    replicas->memory.rows[found - replicas->report.rows] = {};
    return found;
}

bool IsReplaced(const ReplicasShared &replicas, const ReplicaRow &row) noexcept
{
    for (const ReplicaRow &other : replicas.report.rows)
        if (&other != &row && other.in_use && other.pid != 0 && other.connected_us > row.heard_us &&
            IsOf(other, row.application_name, row.address))
            return true;
    return false;
}

} // namespace weir
