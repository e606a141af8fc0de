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

// A session may have a setting of a library that is not loaded there, without the right to it where it is: it
// travels with the right that it was set with. Settings from before the session, and from ALTER ROLE and
// ALTER DATABASE, were somebody's with a superuser's rights.
char RightOf(const config_generic *setting)
{
    return setting->scontext == PGC_USERSET || setting->scontext == PGC_BACKEND ? 'U' : 'S';
}

// Room is counted on, so that the caller learns what it would need.
void Append(char *to, size_t room, size_t *at, const char *text)
{
    const size_t size = strlen(text) + 1;
    if (*at + size <= room)
        memcpy(to + *at, text, size);
    *at += size;
}

struct Setting {
    char right;
    const char *name;
    const char *value;
};

// Steps through a list.
bool Next(const char **at, const char *end, Setting *setting)
{
    if (*at >= end)
        return false;
    setting->right = **at;
    setting->name = *at + 1;
    setting->value = setting->name + strlen(setting->name) + 1;
    *at = setting->value + strlen(setting->value) + 1;
    return true;
}

bool Find(const char *settings, size_t size, const char *name, Setting *found)
{
    const char *at = settings;
    while (Next(&at, settings + size, found))
        if (strcmp(found->name, name) == 0)
            return true;
    return false;
}

void Set(const char *name, const char *value, GucContext right)
{
    set_config_option(name, value, right, PGC_S_SESSION, GUC_ACTION_SAVE, true, DEBUG3, false);
}

// Whatever the other has not: what it would be by itself.
void ResetOthers(const char *mine, size_t mine_size, const char *settings, size_t size)
{
    Setting setting;
    Setting there;
    for (const char *at = mine; Next(&at, mine + mine_size, &setting);)
        if (!Find(settings, size, setting.name, &there))
            Set(setting.name, nullptr, PGC_SUSET);
}

void SetDifferent(const char *mine, size_t mine_size, const char *settings, size_t size)
{
    Setting setting;
    Setting here;
    for (const char *at = settings; Next(&at, settings + size, &setting);)
        if (!Find(mine, mine_size, setting.name, &here) || strcmp(setting.value, here.value) != 0 ||
            setting.right != here.right)
            Set(setting.name, setting.value, setting.right == 'S' ? PGC_SUSET : PGC_USERSET);
}

bool TakeOverRole(Oid role)
{
    if (GetCurrentRoleId() == role)
        return true;
    const char *name = OidIsValid(role) ? GetUserNameFromId(role, true) : "none";
    if (name != nullptr)
        Set("role", name, PGC_USERSET);
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
        if (size < room)
            to[size] = RightOf(all[i]);
        size++;
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
        ResetOthers(mine, mine_size, settings, size);
        SetDifferent(mine, mine_size, settings, size);
        mine_size = CollectSettings(mine, sizeof(mine));
        if (mine_size != size || memcmp(mine, settings, size) != 0)
            return false;
    }
    return TakeOverRole(role);
}

} // namespace weir
