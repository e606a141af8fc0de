#include "coalesce/submit_settings.hpp"

#include "pg/compat.hpp"

extern "C" {
#include "access/xact.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
}

namespace weir
{

namespace
{

constexpr size_t kMostSettings = 8192; // bytes; a request is smaller

// Everything that is a clock of the session, or the transaction's own.
bool IsLeftOut(const char *name)
{
    static constexpr const char *names[] = {"client_connection_check_interval",
                                            "default_transaction_deferrable",
                                            "default_transaction_isolation",
                                            "default_transaction_read_only",
                                            "idle_in_transaction_session_timeout",
                                            "idle_session_timeout",
                                            "lock_timeout",
                                            "statement_timeout",
                                            "synchronous_commit",
                                            "transaction_timeout"};
    for (const char *other : names)
        if (strcmp(name, other) == 0)
            return true;
    return false;
}

// GUC_NO_RESET_ALL are the role, the session's authorization, the transaction's mode and random()'s seed.
bool Matters(const config_generic *setting)
{
    if ((setting->flags & GUC_NO_RESET_ALL) != 0 ||
        (setting->context != PGC_USERSET && setting->context != PGC_SUSET))
        return false;
    return (setting->source > PGC_S_ARGV || (setting->flags & GUC_CUSTOM_PLACEHOLDER) != 0) &&
           !IsLeftOut(setting->name);
}

// As set_config_option() reads it back, exactly.
const char *ValueOf(const config_generic *setting, char *buffer, size_t size)
{
    if (setting->vartype == PGC_REAL) {
        snprintf(buffer, size, "%.17g", *reinterpret_cast<const config_real *>(setting)->variable);
        return buffer;
    }
    const char *value = GetConfigOption(setting->name, true, false);
    return value != nullptr ? value : "";
}

// Room is counted on, so that the caller learns what it would need.
void Append(char *to, size_t room, size_t *at, const char *text)
{
    const size_t size = strlen(text) + 1;
    if (*at + size <= room)
        memcpy(to + *at, text, size);
    *at += size;
}

// The value in a list, or null.
const char *Find(const char *settings, size_t size, const char *name)
{
    for (const char *at = settings; at < settings + size;) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, name) == 0)
            return value;
        at = value + strlen(value) + 1;
    }
    return nullptr;
}

void Set(const char *name, const char *value)
{
    // The session may set it, or could: it has it.
    set_config_option(name, value, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, DEBUG3, false);
}

// Sets those of `from` that differ in `other`: to their value, or to what they would be by themselves.
void SetDifferences(const char *from, size_t from_size, const char *other, size_t other_size, bool reset)
{
    for (const char *name = from; name < from + from_size;) {
        const char *value = name + strlen(name) + 1;
        const char *there = Find(other, other_size, name);
        if (reset ? there == nullptr : there == nullptr || strcmp(value, there) != 0)
            Set(name, reset ? nullptr : value);
        name = value + strlen(value) + 1;
    }
}

bool TakeOverRole(Oid role)
{
    if (GetCurrentRoleId() == role)
        return true;
    const char *name = OidIsValid(role) ? GetUserNameFromId(role, true) : "none";
    if (name != nullptr)
        Set("role", name);
    return GetCurrentRoleId() == role;
}

} // namespace

size_t CollectSettings(char *to, size_t room)
{
    int count;
    config_generic **all = AllSettings(&count);
    size_t size = 0;
    for (int i = 0; i < count; i++) {
        char buffer[64];
        if (!Matters(all[i]))
            continue;
        const char *value = ValueOf(all[i], buffer, sizeof(buffer));
        Append(to, room, &size, all[i]->name);
        Append(to, room, &size, value);
    }
    return size;
}

bool TakeOverSettings(const char *settings, size_t size, Oid role)
{
    static char mine[kMostSettings];
    size_t mine_size = CollectSettings(mine, sizeof(mine));
    if (mine_size > sizeof(mine))
        return false;
    if (mine_size != size || memcmp(mine, settings, size) != 0) {
        SetDifferences(mine, mine_size, settings, size, true);
        SetDifferences(settings, size, mine, mine_size, false);
        mine_size = CollectSettings(mine, sizeof(mine));
        if (mine_size != size || memcmp(mine, settings, size) != 0)
            return false;
    }
    return TakeOverRole(role);
}

} // namespace weir
