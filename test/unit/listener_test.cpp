// The listener with real sockets, in one thread: the test's own, which lets it serve while it waits for an
// answer.

#include "http/listener.hpp"

#include <arpa/inet.h>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <string>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

#include <gtest/gtest.h>

namespace weir
{

namespace
{

using Clock = std::chrono::steady_clock;

constexpr int kDeadlineMs = 300; // of the listener
constexpr auto kPatience = std::chrono::seconds(10);

HttpCounters counters;
std::string last_target;
std::string body;

void Respond(const char *target, size_t length, HttpAnswer *answer)
{
    last_target.assign(target, length);
    *answer = {last_target == "/missing" ? 404 : 200, "text/plain", body.data(), body.size()};
}

class ListenerTest : public ::testing::Test
{
  protected:
    void SetUp() override
    {
        for (auto &answers : counters.answers)
            answers.store(0);
        counters.connections.store(0);
        counters.evicted.store(0);
        counters.late.store(0);
        body = "hello";
        limits.connections = 4;
        limits.deadline_ms = kDeadlineMs;
        Listen();
    }

    void TearDown() override
    {
        HttpClose();
        EXPECT_EQ(counters.open.load(), 0u);
        EXPECT_EQ(HttpPort(), 0);
    }

    void Listen()
    {
        char error[kHttpErrorSize] = "";
        ASSERT_TRUE(HttpListen("127.0.0.1", 0, limits, Respond, &counters, error)) << error;
        ASSERT_NE(HttpPort(), 0);
    }

    void Serve(int ms = 1)
    {
        char error[kHttpErrorSize];
        ASSERT_TRUE(HttpServe(ms, error)) << error;
    }

    template <typename Condition> bool ServeUntil(Condition condition)
    {
        const auto end = Clock::now() + kPatience;
        while (!condition())
            if (Clock::now() < end)
                Serve();
            else
                return false;
        return true;
    }

    HttpLimits limits;
};

struct Client {
    int descriptor;
    std::string received;
    bool closed = false;

    Client()
    {
        descriptor = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_port = htons(HttpPort());
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        EXPECT_EQ(connect(descriptor, reinterpret_cast<sockaddr *>(&address), sizeof(address)), 0);
        fcntl(descriptor, F_SETFL, O_NONBLOCK);
    }
    ~Client() { close(descriptor); }
    Client(const Client &) = delete;
    Client &operator=(const Client &) = delete;

    // How much of it was taken.
    size_t Send(const std::string &text)
    {
        const ssize_t sent = send(descriptor, text.data(), text.size(), MSG_NOSIGNAL);
        return sent < 0 ? 0 : static_cast<size_t>(sent);
    }

    // Reads what is there.
    bool Closed()
    {
        char bytes[65536];
        for (;;) {
            const ssize_t n = recv(descriptor, bytes, sizeof(bytes), 0);
            if (n > 0) {
                received.append(bytes, static_cast<size_t>(n));
                continue;
            }
            closed = closed || n == 0 || (errno != EAGAIN && errno != EINTR);
            return closed;
        }
    }

    bool Received(const std::string &text)
    {
        Closed();
        return received.find(text) != std::string::npos;
    }

    int Status() const { return received.compare(0, 5, "HTTP/") == 0 ? std::stoi(received.substr(9, 3)) : 0; }
};

TEST_F(ListenerTest, AnswersAndGoesOn)
{
    Client client;
    for (int i = 0; i < 3; i++) {
        client.received.clear();
        client.Send("GET /health?x=" + std::to_string(i) + " HTTP/1.1\r\nHost: a\r\n\r\n");
        ASSERT_TRUE(ServeUntil([&] { return client.Received("\r\n\r\nhello"); })) << client.received;
        EXPECT_EQ(client.Status(), 200);
        EXPECT_EQ(last_target, "/health?x=" + std::to_string(i));
        EXPECT_TRUE(client.Received("Content-Length: 5\r\n"));
    }
    EXPECT_EQ(counters.connections.load(), 1u);
    EXPECT_EQ(counters.answers[2].load(), 3u);
    client.Send("GET /missing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    EXPECT_TRUE(ServeUntil([&] { return client.Received("404 Not Found") && client.Closed(); }));
}

TEST_F(ListenerTest, Pipelined)
{
    Client client;
    client.Send("GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /missing HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(ServeUntil([&] { return client.Received("404 Not Found"); })) << client.received;
    EXPECT_EQ(counters.answers[2].load(), 2u);
}

TEST_F(ListenerTest, HeadAndOptions)
{
    Client head;
    head.Send("HEAD /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    ASSERT_TRUE(ServeUntil([&] { return head.Closed(); }));
    EXPECT_EQ(head.Status(), 200);
    EXPECT_NE(head.received.find("Content-Length: 5\r\n"), std::string::npos);
    EXPECT_EQ(head.received.substr(head.received.size() - 4), "\r\n\r\n");
    // What HAProxy sends unless told otherwise.
    Client options;
    options.Send("OPTIONS /primary HTTP/1.0\r\n\r\n");
    ASSERT_TRUE(ServeUntil([&] { return options.Closed(); }));
    EXPECT_EQ(options.Status(), 200);
    EXPECT_EQ(last_target, "/primary");
}

TEST_F(ListenerTest, WhatIsNotARequestIsToldSo)
{
    const struct {
        std::string text;
        int status;
    } cases[] = {
        {"\r\n\r\nrubbish\r\n\r\n", 400},
        {"GET\r\n\r\n", 400},
        {"GET /health HTTP/2.0\r\n\r\n", 400},
        {"GET /health HTTP/1.1\r\nno colon\r\n\r\n", 400},
        {"GET /hea lth HTTP/1.1\r\n\r\n", 400},
        {std::string("GET /hea\0lth HTTP/1.1\r\n\r\n", 25), 400},
        {"\x16\x03\x01\x02\x01\x01\xfc\x03\x03 TLS is not spoken here\r\n\r\n", 400},
        {"GET /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
        {"GET /health HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
        {"GET /health HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 413},
        {"GET /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413},
        {"POST /health HTTP/1.1\r\n\r\n", 405},
        {"BREW /health HTTP/1.1\r\n\r\n", 405},
        {"GET /" + std::string(5000, 'x') + " HTTP/1.1\r\n\r\n", 431},
        {"GET / HTTP/1.1\r\nX: " + std::string(100000, 'x') + "\r\n\r\n", 431},
    };
    for (const auto &c : cases) {
        Client client;
        size_t sent = 0;
        ASSERT_TRUE(ServeUntil([&] {
            sent += client.Send(c.text.substr(sent));
            client.Closed();
            return client.Status() != 0;
        })) << c.text.substr(0, 60);
        EXPECT_EQ(client.Status(), c.status) << c.text.substr(0, 60) << "\n" << client.received;
    }
}

// Who is still sending when the answer comes can go on, and then read it.
TEST_F(ListenerTest, AnAnswerDoesNotCutTheRequestOff)
{
    Client client;
    client.Send("GET /" + std::string(5000, 'x'));
    ASSERT_TRUE(ServeUntil([&] { return counters.answers[4].load() == 1; }));
    for (int i = 0; i < 5; i++) {
        Serve(5);
        EXPECT_EQ(client.Send(std::string(1000, 'x')), 1000u);
    }
    EXPECT_TRUE(ServeUntil([&] { return client.Closed(); }));
    EXPECT_EQ(client.Status(), 431);
}

TEST_F(ListenerTest, SlowRequestsEndAtTheirDeadline)
{
    Client silent;
    Client trickling;
    const auto began = Clock::now();
    // A byte at a time does not put the end off. It is counted a moment after the client can see it.
    ASSERT_TRUE(ServeUntil([&] {
        trickling.Send("X");
        return trickling.Closed() && silent.Closed() && counters.late.load() == 2;
    }));
    const auto took = Clock::now() - began;
    EXPECT_GE(took, std::chrono::milliseconds(kDeadlineMs - 50));
    EXPECT_LT(took, std::chrono::seconds(5));
    EXPECT_EQ(silent.received, "");
}

TEST_F(ListenerTest, AConnectionThatIsKeptOpenForNothingIsNotLate)
{
    Client idle;
    idle.Send("GET / HTTP/1.1\r\n\r\n");
    Client begins_another;
    begins_another.Send("GET / HTTP/1.1\r\n\r\nGET");
    ASSERT_TRUE(
        ServeUntil([&] { return idle.Closed() && begins_another.Closed() && counters.open.load() == 0; }));
    EXPECT_EQ(idle.Status(), 200);
    EXPECT_EQ(counters.late.load(), 1u);
}

TEST_F(ListenerTest, AnAnswerThatNobodyReadsEndsAtItsDeadline)
{
    body.assign(32 << 20, 'x');
    Client client;
    client.Send("GET / HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(ServeUntil([&] { return counters.late.load() == 1 && counters.open.load() == 0; }));
}

TEST_F(ListenerTest, ANewcomerTakesThePlaceOfTheSlowest)
{
    std::vector<std::unique_ptr<Client>> crowd;
    for (uint32_t i = 0; i < 3 * limits.connections; i++)
        crowd.push_back(std::make_unique<Client>());
    Client check;
    check.Send("GET /health HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(ServeUntil([&] { return check.Received("hello"); }));
    EXPECT_EQ(counters.evicted.load(), 2 * limits.connections + 1);
    EXPECT_LE(counters.open.load(), limits.connections);
    EXPECT_TRUE(crowd.front()->Closed());
    EXPECT_FALSE(crowd.back()->Closed());
}

TEST_F(ListenerTest, ClientsThatLeave)
{
    for (const char *text : {"", "GET", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\n\r\n"}) {
        Client client;
        client.Send(text);
        Serve();
    }
    EXPECT_TRUE(ServeUntil([&] { return counters.open.load() == 0 && counters.connections.load() == 4; }));
}

TEST_F(ListenerTest, WithoutDescriptorsItWaitsForSome)
{
    rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    Client client;
    client.Send("GET / HTTP/1.1\r\n\r\n");
    // None is left: the next one would be this.
    const int next = dup(0);
    close(next);
    rlimit none = before;
    none.rlim_cur = static_cast<rlim_t>(next);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    const auto began = Clock::now();
    while (Clock::now() - began < std::chrono::milliseconds(20))
        Serve();
    EXPECT_EQ(counters.connections.load(), 0u);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_TRUE(ServeUntil([&] { return client.Received("hello"); }));
}

TEST_F(ListenerTest, WakesFromASignalAndFromADescriptor)
{
    const auto began = Clock::now();
    HttpWake();
    Serve(60000);
    // A signal while it sleeps.
    struct sigaction old;
    struct sigaction action = {};
    action.sa_handler = [](int) { HttpWake(); };
    sigaction(SIGALRM, &action, &old);
    ualarm(20000, 0);
    Serve(60000);
    sigaction(SIGALRM, &old, nullptr);
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    char error[kHttpErrorSize];
    ASSERT_TRUE(HttpWakeOn(ends[0], error)) << error;
    close(ends[1]); // as when the postmaster dies
    Serve(60000);
    close(ends[0]);
    EXPECT_LT(Clock::now() - began, std::chrono::seconds(30));
}

TEST_F(ListenerTest, APortThatIsTakenAndOneThatIsGivenBack)
{
    const uint16_t port = HttpPort();
    HttpClose();
    const int other = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int on = 1;
    setsockopt(other, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    ASSERT_EQ(bind(other, reinterpret_cast<sockaddr *>(&address), sizeof(address)), 0);
    ASSERT_EQ(listen(other, 1), 0);
    char error[kHttpErrorSize];
    EXPECT_FALSE(HttpListen("127.0.0.1", port, limits, Respond, &counters, error));
    EXPECT_STREQ(error, "Address already in use");
    EXPECT_EQ(HttpPort(), 0);
    close(other);
    EXPECT_TRUE(HttpListen("127.0.0.1", port, limits, Respond, &counters, error)) << error;
    EXPECT_FALSE(HttpListen("localhost", port, limits, Respond, &counters, error));
    EXPECT_FALSE(HttpListen("192.0.2.1", port, limits, Respond, &counters, error));
    EXPECT_STREQ(error, "Cannot assign requested address");
}

TEST(Listener, Addresses)
{
    for (const char *address : {"127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%1"})
        EXPECT_TRUE(IsHttpAddress(address)) << address;
    for (const char *address : {"", "*", "localhost", "127.0.0.1:80", "127.1", "1.2.3.4.5", "::1::", " ::1"})
        EXPECT_FALSE(IsHttpAddress(address)) << address;
}

// Requests, good ones that were damaged: in any order, in pieces, cut off. After each of them a good one is
// answered.
TEST_F(ListenerTest, DamagedRequests)
{
    const std::vector<std::string> good = {
        "GET /replica?lag=16MB&min_lsn=0/3000060 HTTP/1.1\r\nHost: example\r\nUser-Agent: check\r\n\r\n",
        "OPTIONS /primary HTTP/1.0\r\n\r\n",
        "HEAD /health HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        "POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nTrailer: "
        "x\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nAccept: */*\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    };
    limits.deadline_ms = 20;
    Listen();
    const uint32_t seed =
        getenv("SEED") != nullptr ? static_cast<uint32_t>(atoi(getenv("SEED"))) : std::random_device()();
    RecordProperty("seed", std::to_string(seed));
    std::mt19937 random(seed);
    auto any = [&](size_t n) { return n == 0 ? 0 : random() % n; };
    const auto end = Clock::now() + std::chrono::seconds(3);
    for (int round = 0; round < 1500 && Clock::now() < end; round++) {
        std::string text = good[any(good.size())];
        for (size_t damages = any(4) + 1; damages > 0; damages--) {
            const size_t at = any(text.size());
            switch (any(5)) {
            case 0:
                text[at] = static_cast<char>(random());
                break;
            case 1:
                text.erase(at, any(20) + 1);
                break;
            case 2:
                text.insert(at, any(8) == 0 ? 20000 : any(20), static_cast<char>(random()));
                break;
            case 3:
                text.insert(at, good[any(good.size())].substr(0, any(40)));
                break;
            default:
                text.insert(at, "\r\n");
            }
            if (text.empty())
                text = "\n";
        }
        Client client;
        for (size_t at = 0; at < text.size();) {
            const size_t piece = any(4) == 0 ? any(text.size() - at) + 1 : text.size() - at;
            client.Send(text.substr(at, piece));
            at += piece;
            Serve(any(3) == 0 ? 1 : 0);
            ASSERT_TRUE(client.Closed() || client.received.empty() || client.Status() != 0)
                << "SEED=" << seed;
        }
        Client after;
        after.Send("GET /missing HTTP/1.1\r\n\r\n");
        ASSERT_TRUE(ServeUntil([&] { return after.Received("404 Not Found"); }))
            << "SEED=" << seed << " " << text;
    }
}

} // namespace

} // namespace weir
