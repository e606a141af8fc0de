// Clients that insert rows, one in so many of which violates a unique constraint: pgbench gives a client up
// that is told of an error. Each is a thread with one connection, as the benchmarks' other clients are.
//
//   violations clients=N seconds=S from=S one_in=N
//
// Into tagged (tag text UNIQUE, payload text); what happens before `from` is not counted. Server and role:
// PGHOST and the like.
//
// Prints: RATE RIGHT WRONG. Answers per second, good or bad; how often 23505 was answered where it was due;
// how often anything else was answered than what was due.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <libpq-fe.h>
#include <unistd.h>

namespace
{

using Clock = std::chrono::steady_clock;

int clients = 1, one_in = 100;
double seconds = 5, from = 0;
std::atomic<int> connected{0};
std::atomic<long> counted{0}, right{0}, wrong{0};
std::atomic<bool> failed{false};

// Starts when all are connected.
double Now()
{
    static const Clock::time_point start = Clock::now();
    return std::chrono::duration<double>(Clock::now() - start).count();
}

void Answered(const PGresult *result, bool due)
{
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const bool violated = code != nullptr && strcmp(code, "23505") == 0;
    if (violated && due)
        right++;
    if (due ? !violated : PQresultStatus(result) != PGRES_COMMAND_OK)
        wrong++;
    if (Now() >= from)
        counted++;
}

void Run(int number)
{
    PGconn *connection = PQconnectdb("application_name=violations");
    PGresult *prepared =
        PQprepare(connection, "i",
                  "INSERT INTO tagged (tag, payload) VALUES ($1, 'some forty bytes of payload')", 0, nullptr);
    if (PQresultStatus(prepared) != PGRES_COMMAND_OK) {
        fprintf(stderr, "violations: %s", PQerrorMessage(connection));
        failed = true;
    }
    PQclear(prepared);
    connected++;
    while (connected < clients)
        usleep(1000);
    const std::string prefix = std::to_string(getpid()) + "." + std::to_string(number) + ".";
    for (long i = 0; !failed && Now() < seconds; i++) {
        // A duplicate of the row before. Not everybody's at the same time.
        const bool due = i > 0 && (i + number) % one_in == 0;
        const std::string tag = prefix + std::to_string(due ? i - 1 : i);
        const char *value = tag.c_str();
        PGresult *result = PQexecPrepared(connection, "i", 1, &value, nullptr, nullptr, 0);
        Answered(result, due);
        PQclear(result);
        if (PQstatus(connection) != CONNECTION_OK)
            failed = true;
    }
    PQfinish(connection);
}

bool Option(const char *argument)
{
    const char *equals = strchr(argument, '=');
    if (equals == nullptr)
        return false;
    const std::string name(argument, equals);
    const char *value = equals + 1;
    if (name == "clients")
        clients = atoi(value);
    else if (name == "one_in")
        one_in = atoi(value) > 1 ? atoi(value) : 2;
    else if (name == "seconds")
        seconds = atof(value);
    else if (name == "from")
        from = atof(value);
    else
        return false;
    return true;
}

} // namespace

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!Option(argv[i])) {
            fprintf(stderr, "violations: what is %s?\n", argv[i]);
            return 2;
        }
    std::vector<std::thread> threads;
    for (int i = 0; i < clients; i++)
        threads.emplace_back(Run, i);
    for (std::thread &thread : threads)
        thread.join();
    printf("%.1f %ld %ld\n", static_cast<double>(counted) / (seconds - from), right.load(), wrong.load());
    return failed ? 1 : 0;
}
