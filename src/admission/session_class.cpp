#include "admission/session_class.hpp"

#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "commands/dbcommands.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
}

namespace weir
{

namespace
{

uint32_t LookUpClass()
{
    if (settings.session_class != nullptr && settings.session_class[0] != '\0') {
        char name[kClassNameSize];
        ParseError error;
        return ParseClassName(settings.session_class, name, &error) ? gate.FindClassOrDefault(name)
                                                                    : kDefaultClass;
    }
    if (settings.class_rules == nullptr || settings.class_rules->count == 0 || MyBEEntry == nullptr)
        return kDefaultClass;
    SessionIdentity identity;
    identity.role = GetUserNameFromId(GetSessionUserId(), true);
    identity.database = get_database_name(MyDatabaseId);
    identity.application_name = application_name;
    identity.address = ToAddress(MyBEEntry->st_clientaddr);
    return gate.FindClassOrDefault(MatchClass(*settings.class_rules, identity));
}

} // namespace

uint32_t SessionClass()
{
    static uint32_t cached = kDefaultClass;
    static uint32_t cached_generation = 0;
    static char cached_application[NAMEDATALEN];

    const uint32_t generation = shared->settings.generation.load(std::memory_order_relaxed);
    const bool by_application = settings.class_rules != nullptr && UsesApplicationName(*settings.class_rules);
    if (generation == cached_generation && !session_identity_changed &&
        (!by_application || strncmp(cached_application, application_name, NAMEDATALEN - 1) == 0))
        return cached;
    cached = LookUpClass();
    cached_generation = generation;
    session_identity_changed = false;
    strncpy(cached_application, application_name != nullptr ? application_name : "", NAMEDATALEN - 1);
    return cached;
}

const char *MappedClass(const ClientPort &port)
{
    if (settings.class_rules == nullptr || settings.class_rules->count == 0)
        return nullptr;
    const SessionIdentity identity = {port.role, port.database, port.application_name, port.address};
    return MatchClass(*settings.class_rules, identity);
}

bool SessionIsSuperuser()
{
    return superuser_arg(GetSessionUserId()) || superuser();
}

} // namespace weir
