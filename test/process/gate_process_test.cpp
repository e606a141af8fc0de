// The gate under processes that are stopped, end and are killed at any moment.

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "gate_sessions.hpp"

namespace weir
{
namespace
{

constexpr uint32_t kLimit = 3;
constexpr uint32_t kMostStopped = 2; // so that one slot at least is never with a stopped session
constexpr int64_t kProgressMs = 5000;

std::atomic<bool> terminated{false};
std::atomic<uint32_t> *my_latch = nullptr;

// As the server's: the handler sets a flag and the latch, so that no signal falls between test and sleep.
void OnTerminate(int)
{
    terminated.store(true);
    my_latch->store(1);
}

class GateProcessTest : public ::testing::Test
{
  protected:
    void SetUp() override
    {
        alarm(60); // the end of a test that hangs; the sessions die with us
        sessions_.gate.shared().limit.store(kLimit);
    }

    void TearDown() override
    {
        EXPECT_TRUE(sessions_.Empty());
        EXPECT_EQ(area().exceeded.load(), 0u) << "more ran than may";
        EXPECT_EQ(area().wrong.load(), 0u);
        alarm(0);
    }

    SharedArea &area() { return sessions_.area(); }
    Gate &gate() { return sessions_.gate; }

    void Configure(uint32_t weight_a, uint32_t weight_b)
    {
        ClassSpecs specs = {};
        specs.count = 2;
        std::strcpy(specs.specs[0].name, "a");
        specs.specs[0].weight = weight_a;
        std::strcpy(specs.specs[1].name, "b");
        specs.specs[1].weight = weight_b;
        gate().Configure(specs);
    }

    uint32_t ClassOf(uint32_t id) { return gate().FindClass(id % 2 == 0 ? "a" : "b"); }

    // ---- in a session

    // True: the slot is held. False: terminated, and whatever state that left.
    bool Acquire(uint32_t id)
    {
        if (gate().TryAcquire(id, ClassOf(id), 1) ||
            sessions_.Enqueue(id, ClassOf(id)) == Admission::kGranted)
            return true;
        for (;;) {
            area().latches[id].store(0);
            if (terminated.load())
                return false;
            if (gate().State(id) != TicketState::kWaiting)
                return true; // held; or even lent, before we noticed
            sessions_.WaitLatch(id);
        }
    }

    // Transactions without a pause, until it is told to end.
    void Work(uint32_t id, bool check_limit)
    {
        my_latch = &area().latches[id];
        std::signal(SIGTERM, OnTerminate);
        while (area().start.load() == 0)
            usleep(100);
        while (!terminated.load() && area().stop.load() == 0) {
            if (!Acquire(id))
                break;
            if (check_limit && area().held.fetch_add(1) >= static_cast<int32_t>(kLimit))
                area().exceeded.fetch_add(1);
            sched_yield();
            if (check_limit)
                area().held.fetch_sub(1);
            else
                gate().Reclaim(id);
            if (terminated.load())
                break;
            sessions_.Release(id);
        }
        sessions_.DropTicket(id);
    }

    // ---- in the parent

    void StartAll(bool check_limit, uint32_t count = kSessions)
    {
        for (uint32_t id = 0; id < count; id++)
            pids_[id] = sessions_.Fork([=] { Work(id, check_limit); });
        area().start.store(1);
    }

    uint64_t Queued()
    {
        return gate().group(gate().FindClass("a")).queued.load() +
               gate().group(gate().FindClass("b")).queued.load();
    }

    void EndAll()
    {
        area().stop.store(1);
        for (const pid_t pid : pids_) {
            int status = 0;
            if (pid == 0)
                continue;
            ASSERT_EQ(waitpid(pid, &status, 0), pid);
            EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
        }
    }

    uint64_t Admitted()
    {
        return sessions_.Admitted(gate().FindClass("a")) + sessions_.Admitted(gate().FindClass("b"));
    }

    // The launcher's part: a session that was stopped between giving back its slot and handing it on hands
    // it on late; until then somebody must.
    void Supervise()
    {
        if (gate().Waiting() > 0 && gate().Active() < kLimit)
            sessions_.Dispatch();
        usleep(100);
    }

    // Waits for that many transactions more. False: they do not come.
    bool AwaitProgress(uint64_t transactions)
    {
        const uint64_t goal = Admitted() + transactions;
        const int64_t until = NowMs() + kProgressMs;
        while (Admitted() < goal) {
            if (NowMs() > until)
                return false;
            Supervise();
        }
        return true;
    }

    // Waits, without dispatching, for that many transactions and for that many of them to have queued: a
    // session that runs before the others have been scheduled does many that prove nothing.
    void AwaitAlone(uint64_t admitted, uint64_t queued)
    {
        const int64_t until = NowMs() + kProgressMs;
        while ((Admitted() < admitted || Queued() < queued) && NowMs() < until)
            usleep(100);
        EXPECT_GE(Admitted(), admitted);
        EXPECT_GE(Queued(), queued);
    }

    // Every session has begun to work.
    bool AwaitAllServed()
    {
        const int64_t until = NowMs() + kProgressMs;
        for (uint32_t id = 0; id < kSessions; id++) {
            while (gate().ticket(id).served.load() == 0) {
                if (NowMs() > until)
                    return false;
                usleep(100);
            }
        }
        return true;
    }

    // Stops a session, unless it has the lock: a process stopped with an LWLock stops the server, with or
    // without a gate.
    bool Stop(pid_t pid)
    {
        kill(pid, SIGSTOP);
        int status = 0;
        if (waitpid(pid, &status, WUNTRACED) != pid || !WIFSTOPPED(status))
            return false;
        if (area().lock_owner.load() != pid)
            return true;
        kill(pid, SIGCONT);
        return false;
    }

    void FairUnderStops(uint32_t weight_a, uint32_t weight_b);

    Sessions sessions_;
    pid_t pids_[kSessions] = {};
    std::mt19937 random_{42};
};

// 10,000 hand-offs, while two sessions at a time are stopped for about a hundred of them.
void GateProcessTest::FairUnderStops(uint32_t weight_a, uint32_t weight_b)
{
    Configure(weight_a, weight_b);
    StartAll(true);
    ASSERT_TRUE(AwaitAllServed());
    ASSERT_TRUE(AwaitProgress(500));
    const uint64_t queued = Queued();
    const uint64_t a = sessions_.Admitted(gate().FindClass("a"));
    const uint64_t b = sessions_.Admitted(gate().FindClass("b"));
    uint32_t stops = 0;
    while (Admitted() < a + b + 10000) {
        std::vector<pid_t> stopped;
        const uint32_t first = random_() % kSessions;
        for (uint32_t i = 0; i < kMostStopped; i++) {
            const pid_t pid = pids_[(first + i * (1 + random_() % 7)) % kSessions];
            if ((stopped.empty() || stopped[0] != pid) && Stop(pid))
                stopped.push_back(pid);
        }
        stops += static_cast<uint32_t>(stopped.size());
        const bool others_go_on = AwaitProgress(50 + random_() % 100);
        for (const pid_t pid : stopped)
            kill(pid, SIGCONT);
        ASSERT_TRUE(others_go_on) << "a stopped session holds up the others";
    }
    const auto grants_a = static_cast<double>(sessions_.Admitted(gate().FindClass("a")) - a);
    const auto grants_b = static_cast<double>(sessions_.Admitted(gate().FindClass("b")) - b);
    const double share = static_cast<double>(weight_a) / (weight_a + weight_b);
    EXPECT_NEAR(grants_a / (grants_a + grants_b), share, 0.1 * share);
    EXPECT_NEAR(grants_b / (grants_a + grants_b), 1 - share, 0.1 * (1 - share));
    EXPECT_GT(stops, 50u);
    EXPECT_GT(Queued() - queued, 8000u) << "most were handed on from one session to another";
    EndAll();
}

TEST_F(GateProcessTest, EqualClassesShareEquallyWhileSessionsAreStopped)
{
    FairUnderStops(1, 1);
}

TEST_F(GateProcessTest, SharesAreTheWeightsWhileSessionsAreStopped)
{
    FairUnderStops(1, 3);
}

// Without the launcher's part, and nobody is stopped: what the sessions do not hand on stays where it is.
TEST_F(GateProcessTest, SessionsAloneLoseNoWakeUp)
{
    Configure(1, 1);
    StartAll(true);
    AwaitAlone(5000, 2000);
    EndAll();
}

// Two on one slot: the queue is empty again and again, and there is no third whose release would make up for
// a lost wake-up.
TEST_F(GateProcessTest, TwoSessionsAloneLoseNoWakeUp)
{
    Configure(1, 1);
    gate().shared().limit.store(1);
    StartAll(true, 2);
    AwaitAlone(20000, 100);
    for (const pid_t pid : {pids_[0], pids_[1]})
        kill(pid, SIGTERM);
    EndAll();
}

// The postmaster answers a killed backend by killing all and starting shared memory anew: that is why nothing
// in the gate has to survive it, and all that this can show is that nothing does.
TEST_F(GateProcessTest, AKilledSessionEndsInARestartFromNothing)
{
    uint32_t found_in_use = 0;
    for (int round = 0; round < 15; round++) {
        Configure(1, 2);
        gate().shared().limit.store(kLimit);
        StartAll(true);
        ASSERT_TRUE(AwaitProgress(random_() % 200));
        kill(pids_[random_() % kSessions], SIGKILL);
        for (const pid_t pid : pids_)
            kill(pid, SIGKILL);
        for (const pid_t pid : pids_)
            ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
        found_in_use += !sessions_.Empty();
        EXPECT_EQ(area().exceeded.load(), 0u);
        sessions_.Restart();
        ASSERT_TRUE(sessions_.Empty());
    }
    EXPECT_GT(found_in_use, 10u) << "the kills came too late to show anything";
    Configure(1, 2);
    gate().shared().limit.store(kLimit);
    StartAll(true);
    ASSERT_TRUE(AwaitProgress(500));
    EndAll();
}

// pg_terminate_backend of anybody at any time, while the supervisor lends.
TEST_F(GateProcessTest, SessionsThatAreTerminatedLeaveNothing)
{
    Configure(1, 2);
    StartAll(false);
    uint32_t lent = 0;
    for (int round = 0; round < 150; round++) {
        const uint32_t id = random_() % kSessions;
        kill(pids_[id], SIGTERM);
        const int64_t until = NowMs() + kProgressMs;
        while (waitpid(pids_[id], nullptr, WNOHANG) == 0) {
            ASSERT_LT(NowMs(), until) << "the session does not end";
            const uint32_t other = random_() % kSessions;
            lent += gate().Lend(other, gate().ticket(other).word.load(), false);
            Supervise();
        }
        ASSERT_EQ(gate().State(id), TicketState::kFree);
        pids_[id] = sessions_.Fork([=] { Work(id, false); });
    }
    EXPECT_GT(lent, 0u);
    EndAll();
}

// ---- the ordinary exit, from every state

class GateExitTest : public GateProcessTest
{
  protected:
    static constexpr uint32_t kChild = 0;
    static constexpr uint32_t kOther = 1;

    void SetUp() override
    {
        GateProcessTest::SetUp();
        gate().shared().limit.store(1);
    }

    // A session that gets to a state by `begin`, waits for us to do `meanwhile`, and exits.
    template <typename Begin, typename Meanwhile> void ExitAfter(Begin begin, Meanwhile meanwhile)
    {
        const pid_t pid = sessions_.Fork([&] {
            begin();
            area().reached.store(1);
            while (area().stop.load() == 0)
                usleep(100);
            sessions_.DropTicket(kChild);
        });
        const int64_t until = NowMs() + kProgressMs;
        while (area().reached.load() == 0 && NowMs() < until)
            usleep(100);
        ASSERT_EQ(area().reached.load(), 1u);
        meanwhile();
        area().stop.store(1);
        int status = 0;
        ASSERT_EQ(waitpid(pid, &status, 0), pid);
        EXPECT_EQ(status, 0);
        EXPECT_EQ(gate().State(kChild), TicketState::kFree);
        sessions_.DropTicket(kOther);
    }

    void Lend() { EXPECT_TRUE(gate().Lend(kChild, gate().ticket(kChild).word.load(), false)); }
    void Hold() { area().wrong.fetch_add(!gate().TryAcquire(kChild, kDefaultClass, 1)); }
    void Queue() { area().wrong.fetch_add(sessions_.Enqueue(kChild, kDefaultClass) != Admission::kQueued); }
};

TEST_F(GateExitTest, Free)
{
    ExitAfter([] {}, [] {});
}

TEST_F(GateExitTest, Waiting)
{
    gate().TryAcquire(kOther, kDefaultClass, 1);
    ExitAfter([&] { Queue(); }, [] {});
}

TEST_F(GateExitTest, GrantedWithoutHavingNoticed)
{
    gate().TryAcquire(kOther, kDefaultClass, 1);
    ExitAfter([&] { Queue(); }, [&] { sessions_.Release(kOther); });
}

TEST_F(GateExitTest, GrantedOverTheLimit)
{
    gate().TryAcquire(kOther, kDefaultClass, 1);
    ExitAfter([&] { Queue(); },
              [&] {
                  sessions_.Lock();
                  EXPECT_TRUE(gate().GrantOver(kChild));
                  sessions_.Unlock();
              });
}

TEST_F(GateExitTest, HeldHandsItsSlotOn)
{
    ExitAfter([&] { Hold(); },
              [&] { EXPECT_EQ(sessions_.Enqueue(kOther, kDefaultClass), Admission::kQueued); });
    EXPECT_EQ(gate().ticket(kOther).served.load(), 1u) << "the slot was handed on";
}

TEST_F(GateExitTest, Lent)
{
    ExitAfter([&] { Hold(); }, [&] { Lend(); });
}

TEST_F(GateExitTest, LentAndTakenByAnother)
{
    ExitAfter([&] { Hold(); },
              [&] {
                  Lend();
                  EXPECT_TRUE(gate().TryAcquire(kOther, kDefaultClass, 1));
              });
}

TEST_F(GateExitTest, Reclaimed)
{
    ExitAfter(
        [&] {
            Hold();
            Lend();
            area().wrong.fetch_add(!gate().Reclaim(kChild));
        },
        [] {});
}

} // namespace
} // namespace weir
