// Clients that each connect, ask SELECT 1, and disconnect; all of them in one thread, so that a thousand of
// them take little of the processors that are being measured. pgbench -C has a thread per client and gives a
// refused client up.
//
//   logins clients=N [logins=N] [seconds=S] [within=S] [from=S] [series=FILE]
//
// Each client logs in again as soon as it was served, until there were `logins` in all or `seconds` (600) are
// over. A refused client tries again at once; it is still the same login. The clients arrive evenly within
// `within` seconds (0). So: a storm is clients=1000 seconds=10; a burst clients=1000 logins=1000 within=1; a
// pace clients=8 logins=1000. What happens before `from` is not counted. Server and role: PGHOST (a
// directory), PGPORT, PGUSER, PGDATABASE; trust.
//
// Prints: SERVED REFUSED FAILED UNSERVED SECONDS RATE P50 P99 MAX. Served is who was answered; refused
// attempts were told 53300 or 57P03; failed ones anything else, and standard error says what; unserved is who
// was under way at the end. SECONDS last to the last login if their number is given. RATE is per second, P50
// to MAX are milliseconds from when a login was first tried until its answer; MAX is also of the unserved.
// `series` gets a line a second: second, served.

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <queue>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace
{

constexpr double kBacklogRetryS = 0.001; // the kernel's queue of connections is full
constexpr double kFailureRetryS = 0.01;  // do not spin while a server restarts

struct Options {
    int clients = 1;
    long logins = 0;
    double seconds = 600;
    double within = 0;
    double from = 0;
    const char *series = nullptr;
};

enum class Phase { kOut, kStartingUp, kAsked };

struct Client {
    int fd = -1;
    Phase phase = Phase::kOut;
    bool wants = false; // between the first attempt of a login and its answer
    double since = 0;
    std::string input;
};

struct Due {
    double at;
    int client;
    bool operator<(const Due &other) const { return at > other.at; } // earliest on top
};

Options options;
std::vector<Client> clients;
std::priority_queue<Due> due;
std::vector<double> latencies;
std::vector<long> served_in_second;
long begun = 0, served = 0, refused = 0, failed = 0;
double last_served = 0;
int epoll_fd = -1;
sockaddr_un address;
std::string startup_packet;

[[noreturn]] void Die(const char *what)
{
    fprintf(stderr, "logins: %s: %s\n", what, strerror(errno));
    exit(1);
}

double Now()
{
    static const auto start = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const char *FromEnvironment(const char *name)
{
    const char *value = getenv(name);
    if (value == nullptr) {
        fprintf(stderr, "logins: %s is not set\n", name);
        exit(2);
    }
    return value;
}

std::string WithLength(const std::string &body)
{
    const uint32_t length = htonl(static_cast<uint32_t>(body.size() + 4));
    return std::string(reinterpret_cast<const char *>(&length), 4) + body;
}

void Prepare()
{
    const std::string path =
        std::string(FromEnvironment("PGHOST")) + "/.s.PGSQL." + FromEnvironment("PGPORT");
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        fprintf(stderr, "logins: the path of the socket is too long: %s\n", path.c_str());
        exit(2);
    }
    memcpy(address.sun_path, path.c_str(), path.size() + 1);
    std::string body("\0\3\0\0", 4);
    const std::string parameters[] = {
        "user",  FromEnvironment("PGUSER"), "database", FromEnvironment("PGDATABASE"), "application_name",
        "logins"};
    for (const std::string &text : parameters)
        body += text + '\0';
    startup_packet = WithLength(body + '\0');
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        Die("epoll_create1");
    clients.resize(static_cast<size_t>(options.clients));
    for (int i = 0; i < options.clients; i++)
        due.push({options.within * i / options.clients, i});
}

void Leave(Client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    client->phase = Phase::kOut;
    client->input.clear();
}

void Retry(int index, double delay_s)
{
    Leave(&clients[index]);
    due.push({Now() + delay_s, index});
}

void Fail(int index, const std::string &why)
{
    static std::string last;
    if (why != last)
        fprintf(stderr, "logins: %s\n", why.c_str());
    last = why;
    if (Now() >= options.from)
        failed++;
    Retry(index, kFailureRetryS);
}

bool Send(const Client &client, const std::string &bytes)
{
    return send(client.fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

void Connect(int index)
{
    Client *client = &clients[index];
    if (!client->wants) {
        if (options.logins != 0 && begun == options.logins)
            return;
        begun++;
        client->wants = true;
        client->since = Now();
    }
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        Die("socket");
    if (connect(client->fd, reinterpret_cast<sockaddr *>(&address), sizeof address) != 0) {
        if (errno == EAGAIN)
            Retry(index, kBacklogRetryS);
        else
            Fail(index, std::string("connect: ") + strerror(errno));
        return;
    }
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.u32 = static_cast<uint32_t>(index);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, client->fd, &event) != 0)
        Die("epoll_ctl");
    client->phase = Phase::kStartingUp;
    // A server that refuses before it has read anything has closed; what it said is still there to be read.
    (void)Send(*client, startup_packet);
}

void Served(int index)
{
    Client *client = &clients[index];
    const double now = Now();
    (void)Send(*client, std::string("X\0\0\0\4", 5));
    client->wants = false;
    served_in_second.resize(std::max(served_in_second.size(), static_cast<size_t>(now) + 1));
    served_in_second[static_cast<size_t>(now)]++;
    if (now >= options.from) {
        served++;
        latencies.push_back(now - client->since);
    }
    last_served = now;
    Retry(index, 0);
}

// ErrorField: the field of an ErrorResponse's body; a field is a letter and a string.
std::string ErrorField(const std::string &body, char wanted)
{
    for (size_t at = 0; at < body.size() && body[at] != '\0'; at = body.find('\0', at) + 1)
        if (body[at] == wanted)
            return body.c_str() + at + 1;
    return "";
}

void Refused(int index, const std::string &body)
{
    const std::string code = ErrorField(body, 'C');
    if (code != "53300" && code != "57P03") {
        Fail(index, code + ": " + ErrorField(body, 'M'));
        return;
    }
    if (Now() >= options.from)
        refused++;
    Retry(index, 0);
}

// Handle: one message of the server; false when the client has left.
bool Handle(int index, char type, const std::string &body)
{
    Client *client = &clients[index];
    if (type == 'E') {
        Refused(index, body);
        return false;
    }
    if (type == 'R' && body != std::string(4, '\0')) {
        Fail(index, "the server wants a password");
        return false;
    }
    if (type != 'Z')
        return true;
    if (client->phase == Phase::kAsked) {
        Served(index);
        return false;
    }
    client->phase = Phase::kAsked;
    if (Send(*client, "Q" + WithLength(std::string("SELECT 1") + '\0')))
        return true;
    Fail(index, "the server does not listen");
    return false;
}

void Read(int index)
{
    Client *client = &clients[index];
    char bytes[8192];
    const ssize_t count = recv(client->fd, bytes, sizeof bytes, 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count <= 0) {
        Fail(index, count == 0 ? "closed without a word" : strerror(errno));
        return;
    }
    client->input.append(bytes, static_cast<size_t>(count));
    size_t at = 0;
    while (client->input.size() >= at + 5) {
        uint32_t length;
        memcpy(&length, client->input.data() + at + 1, 4);
        length = ntohl(length);
        if (length < 4 || client->input.size() < at + 1 + length)
            break;
        const std::string body = client->input.substr(at + 5, length - 4);
        const char type = client->input[at];
        at += 1 + length;
        if (!Handle(index, type, body))
            return;
    }
    client->input.erase(0, at);
}

bool Over()
{
    return Now() >= options.seconds ||
           (options.logins != 0 && begun == options.logins &&
            std::none_of(clients.begin(), clients.end(), [](const Client &c) { return c.wants; }));
}

void Run()
{
    epoll_event events[256];
    while (!Over()) {
        while (!due.empty() && due.top().at <= Now()) {
            const int index = due.top().client;
            due.pop();
            Connect(index);
        }
        const double until = due.empty() ? options.seconds : std::min(due.top().at, options.seconds);
        const int timeout_ms = static_cast<int>(std::ceil(std::max(0.0, until - Now()) * 1000));
        const int count = epoll_wait(epoll_fd, events, 256, std::min(timeout_ms, 100));
        if (count < 0 && errno != EINTR)
            Die("epoll_wait");
        for (int i = 0; i < count; i++)
            if (clients[events[i].data.u32].fd >= 0)
                Read(static_cast<int>(events[i].data.u32));
    }
}

double PercentileMs(double percent)
{
    if (latencies.empty())
        return 0;
    const auto rank = static_cast<size_t>(std::ceil(percent / 100 * static_cast<double>(latencies.size())));
    return 1000 * latencies[rank == 0 ? 0 : rank - 1];
}

int Report()
{
    const double end = Now();
    const double seconds = (options.logins != 0 ? last_served : end) - options.from;
    long unserved = 0;
    double longest = 0;
    for (const Client &client : clients)
        if (client.wants) {
            unserved++;
            longest = std::max(longest, end - client.since);
        }
    std::sort(latencies.begin(), latencies.end());
    if (!latencies.empty())
        longest = std::max(longest, latencies.back());
    printf("%ld %ld %ld %ld %.3f %.1f %.1f %.1f %.1f\n", served, refused, failed, unserved, seconds,
           seconds > 0 ? static_cast<double>(served) / seconds : 0, PercentileMs(50), PercentileMs(99),
           1000 * longest);
    if (options.series != nullptr) {
        FILE *file = fopen(options.series, "w");
        if (file == nullptr)
            Die(options.series);
        for (size_t i = 0; i < served_in_second.size(); i++)
            fprintf(file, "%zu %ld\n", i + 1, served_in_second[i]);
        fclose(file);
    }
    return options.logins != 0 && unserved != 0 ? 1 : 0;
}

bool Option(const char *argument)
{
    const char *equals = strchr(argument, '=');
    if (equals == nullptr)
        return false;
    const std::string name(argument, equals);
    const char *value = equals + 1;
    if (name == "clients")
        options.clients = atoi(value);
    else if (name == "logins")
        options.logins = atol(value);
    else if (name == "seconds")
        options.seconds = atof(value);
    else if (name == "within")
        options.within = atof(value);
    else if (name == "from")
        options.from = atof(value);
    else if (name == "series")
        options.series = value;
    else
        return false;
    return true;
}

} // namespace

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!Option(argv[i])) {
            fprintf(stderr, "logins: what is %s?\n", argv[i]);
            return 2;
        }
    Prepare();
    (void)Now();
    Run();
    return Report();
}
