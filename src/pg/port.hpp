#pragma once

// The connection as its startup packet and its socket describe it, and the hook that sees it.
//
// The server's own headers for both want those of OpenSSL and Kerberos, which a build would otherwise not
// need; the struct was laid out so that its first fields do not depend on them (see libpq-be.h).

#include "admission/class_map.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "libpq/pqcomm.h"
}

namespace weir
{

// Strings may be null, belong to the server, and are as the client sent them.
struct ClientPort {
    const char *role;
    const char *database;
    const char *application_name;
    Address address;
};

// Called when the authentication exchange is over, also when it failed (status as in c.h), before the client
// hears of it.
void InstallAuthenticationHook(void (*judge)(const ClientPort &port, int status));

Address ToAddress(const SockAddr &address);

} // namespace weir
