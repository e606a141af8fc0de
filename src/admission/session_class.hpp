#pragma once

// Which workload class this session is in: weir.class if set, else the first matching rule of weir.class_map,
// else the default class. Looked up again when a setting, the class table or (if a rule asks for it)
// application_name changed.

#include "pg/port.hpp"

namespace weir
{

uint32_t SessionClass();

// What weir.class_map says of a connection that has no session yet; null: nothing. The pointer is
// short-lived.
const char *MappedClass(const ClientPort &port);

// Of the session's role; a superuser stays one after SET ROLE.
bool SessionIsSuperuser();

} // namespace weir
