#include "pg/port.hpp"

#include <netinet/in.h>

// Every field that is read here stands before the first that depends on these.
#undef USE_OPENSSL
#undef ENABLE_GSS

extern "C" {
#include "libpq/auth.h"
#include "libpq/libpq-be.h"
}

namespace weir
{

namespace
{

ClientAuthentication_hook_type previous_hook;
void (*judge_connection)(const ClientPort &port, int status);

void OnClientAuthentication(Port *port, int status)
{
    if (previous_hook)
        previous_hook(port, status);
    const ClientPort client = {port->user_name, port->database_name, port->application_name,
                               ToAddress(port->raddr)};
    judge_connection(client, status);
}

} // namespace

void InstallAuthenticationHook(void (*judge)(const ClientPort &port, int status))
{
    judge_connection = judge;
    previous_hook = ClientAuthentication_hook;
    ClientAuthentication_hook = OnClientAuthentication;
}

Address ToAddress(const SockAddr &client)
{
    Address address = {};
    switch (client.addr.ss_family) {
    case AF_UNIX:
        address.family = AddressFamily::kLocal;
        break;
    case AF_INET: {
        const auto *in = reinterpret_cast<const sockaddr_in *>(&client.addr);
        address.family = AddressFamily::kV4;
        memcpy(address.bytes, &in->sin_addr, 4);
        break;
    }
    case AF_INET6: {
        const auto *in6 = reinterpret_cast<const sockaddr_in6 *>(&client.addr);
        address.family = AddressFamily::kV6;
        memcpy(address.bytes, &in6->sin6_addr, 16);
        break;
    }
    default:
        break;
    }
    return address;
}

} // namespace weir
