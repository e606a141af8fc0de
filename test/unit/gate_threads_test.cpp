// The gate under threads: what ThreadSanitizer must find nothing in. The books of the tests (who holds a
// slot) are relaxed atomics wherever they can be: a mutex would order the threads and hide the gate's own
// races.

#include "admission/gate.hpp"

#include <gtest/gtest.h>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace weir
{
namespace
{

using Clock = std::chrono::steady_clock;

constexpr uint32_t kThreads = 12;
constexpr uint32_t kLimit = 4;
constexpr auto kDeadline = std::chrono::seconds(5); // a wake-up that takes this long was lost
constexpr long kNapNs = 100000000;
constexpr long kImpatienceNs = 20000;

ClassSpec Spec(const char *name, uint32_t weight, uint32_t reserved, uint32_t max_active)
{
    ClassSpec spec = {};
    std::strncpy(spec.name, name, kClassNameSize - 1);
    spec.weight = weight;
    spec.reserved = reserved;
    spec.max_active = max_active;
    return spec;
}

class GateThreadsTest : public ::testing::Test
{
  protected:
    void SetUp() override
    {
        gate_.Init(shared_.get(), tickets_.get(), kThreads);
        gate_.shared().enforcing.store(1);
        gate_.shared().limit.store(kLimit);
    }

    void TearDown() override
    {
        EXPECT_EQ(gate_.shared().load.load(), 0u);
        uint64_t admitted = 0;
        for (uint32_t i = 0; i < kMaxClasses; i++) {
            const GateClass &c = gate_.group(i);
            EXPECT_EQ(Gate::ClassActive(c), 0u) << i;
            EXPECT_EQ(c.waiting.load(), 0u) << i;
            EXPECT_EQ(c.head, kNoTicket) << i;
            admitted += Gate::ClassAdmitted(c);
        }
        EXPECT_EQ(admitted, acquired_.load());
        EXPECT_EQ(lost_.load(), 0u) << "a waiter was forgotten";
        EXPECT_EQ(exceeded_.load(), 0u) << "more ran than may";
        EXPECT_EQ(held_.load(), 0);
    }

    void Configure(const std::vector<ClassSpec> &list)
    {
        ClassSpecs specs = {};
        for (const ClassSpec &spec : list)
            specs.specs[specs.count++] = spec;
        const std::lock_guard<std::mutex> guard(lock_);
        gate_.Configure(specs);
    }

    void DispatchAll()
    {
        WakeList wake;
        do {
            wake.count = 0;
            {
                const std::lock_guard<std::mutex> guard(lock_);
                gate_.Dispatch(0, &wake);
            }
            WakeAll(wake);
        } while (wake.Full());
    }

    bool Leave(uint32_t id)
    {
        const std::lock_guard<std::mutex> guard(lock_);
        return gate_.Leave(id);
    }

    // A latch as the server has one, made of a futex, which orders nothing for ThreadSanitizer.
    void Sleep(uint32_t id, long ns)
    {
        const timespec timeout = {0, ns};
        syscall(SYS_futex, &latches_[id], FUTEX_WAIT_PRIVATE, 0, &timeout, nullptr, 0);
    }

    void WakeAll(const WakeList &wake)
    {
        for (uint32_t i = 0; i < wake.count; i++) {
            latches_[wake.tickets[i]].store(1);
            syscall(SYS_futex, &latches_[wake.tickets[i]], FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
        }
    }

    // True: the slot is held.
    bool Acquire(uint32_t id, uint32_t class_id, bool impatient)
    {
        if (gate_.TryAcquire(id, class_id, 1))
            return true;
        {
            WakeList wake;
            Admission admission;
            {
                const std::lock_guard<std::mutex> guard(lock_);
                admission = gate_.Enqueue(id, class_id, 1, &wake);
            }
            WakeAll(wake);
            if (admission == Admission::kGranted)
                return true;
        }
        const auto began = Clock::now();
        for (int i = 0;; i++) {
            latches_[id].store(0);
            if (gate_.State(id) != TicketState::kWaiting)
                return true;
            if (impatient && i == 1)
                return !Leave(id);
            if (lost_.load(std::memory_order_relaxed) > 0 || Clock::now() - began > kDeadline) {
                lost_.fetch_add(1);
                return !Leave(id);
            }
            Sleep(id, impatient ? kImpatienceNs : kNapNs);
        }
    }

    void Release(uint32_t id)
    {
        if (gate_.Release(id))
            DispatchAll();
    }

    void RunThreads(const std::function<void(uint32_t, std::mt19937 *)> &session,
                    const std::function<void(std::mt19937 *)> &supervisor)
    {
        std::vector<std::thread> threads;
        std::atomic<uint32_t> left{kThreads};
        for (uint32_t id = 0; id < kThreads; id++) {
            threads.emplace_back([&, id] {
                std::mt19937 random(id + 1);
                session(id, &random);
                left.fetch_sub(1);
            });
        }
        std::mt19937 random(99);
        while (left.load() > 0) {
            supervisor(&random);
            std::this_thread::sleep_for(std::chrono::microseconds(100)); // its pace
        }
        for (std::thread &thread : threads)
            thread.join();
    }

    // Nobody but the sessions dispatches: a wake-up that they lose stays lost.
    void SessionsAlone(uint32_t iterations, uint32_t most)
    {
        RunThreads(
            [&](uint32_t id, std::mt19937 *random) {
                const uint32_t classes[] = {kDefaultClass, gate_.FindClass("a"), gate_.FindClass("b")};
                for (uint32_t i = 0; i < iterations; i++) {
                    if (!Acquire(id, classes[id % 3], (*random)() % 8 == 0))
                        continue;
                    acquired_.fetch_add(1, std::memory_order_relaxed);
                    if (held_.fetch_add(1, std::memory_order_relaxed) >= static_cast<int32_t>(most))
                        exceeded_.fetch_add(1);
                    gate_.Beat(id);
                    if ((*random)() % 4 == 0)
                        std::this_thread::yield();
                    held_.fetch_sub(1, std::memory_order_relaxed);
                    Release(id);
                }
            },
            [&](std::mt19937 *) { ReadAll(); });
    }

    // One transaction each, then nobody comes back until all have had theirs: the last releaser's wake-up has
    // no second chance.
    void InRounds(uint32_t threads, uint32_t rounds)
    {
        std::vector<std::thread> running;
        std::atomic<uint32_t> arrived{0};
        for (uint32_t id = 0; id < threads; id++) {
            running.emplace_back([&, id] {
                for (uint32_t round = 1; round <= rounds && lost_.load() == 0; round++) {
                    if (Acquire(id, kDefaultClass, false)) {
                        acquired_.fetch_add(1, std::memory_order_relaxed);
                        Release(id);
                    }
                    arrived.fetch_add(1);
                    while (arrived.load() < round * threads && lost_.load() == 0)
                        std::this_thread::yield();
                }
            });
        }
        for (std::thread &thread : running)
            thread.join();
    }

    // What views and the supervisor read without the lock.
    void ReadAll()
    {
        uint64_t sum = gate_.Active() + gate_.Waiting();
        for (uint32_t id = 0; id < kThreads; id++) {
            const Ticket &t = gate_.ticket(id);
            sum += static_cast<uint32_t>(gate_.State(id)) + t.beats.load(std::memory_order_relaxed) +
                   t.served.load(std::memory_order_relaxed) + t.class_id.load(std::memory_order_relaxed) +
                   static_cast<uint64_t>(t.since_us.load(std::memory_order_relaxed)) +
                   t.stalled.load(std::memory_order_relaxed);
        }
        for (uint32_t i = 0; i < kMaxClasses; i++)
            sum += gate_.group(i).waiting.load(std::memory_order_relaxed) +
                   gate_.group(i).queued.load(std::memory_order_relaxed);
        sum += gate_.FindClass("b") + static_cast<uint32_t>(gate_.QueueTimeoutMs(kDefaultClass));
        read_.store(sum, std::memory_order_relaxed);
    }

    // Whatever happens at once on a busy server: silent holders, reloads, a limit that changes, observe mode.
    void Chaos(uint32_t iterations, bool keep_books);
    void Supervise(std::mt19937 *random, bool keep_books);
    void TryLend(uint32_t id, bool keep_books);

    std::unique_ptr<GateShared> shared_ = std::make_unique<GateShared>();
    std::unique_ptr<Ticket[]> tickets_ = std::make_unique<Ticket[]>(kThreads);
    Gate gate_;
    std::mutex lock_;
    std::atomic<uint32_t> latches_[kThreads] = {};
    std::atomic<int32_t> held_{0};
    std::atomic<uint64_t> acquired_{0};
    std::atomic<uint32_t> lost_{0};
    std::atomic<uint32_t> exceeded_{0};
    std::atomic<uint64_t> read_{0};

    // With books: how many may run over the limit, because their slots were lent.
    std::mutex books_;
    int32_t lent_[kThreads] = {};
    int32_t lent_total_ = 0;
};

constexpr uint32_t kMostReserved = 2;

void GateThreadsTest::TryLend(uint32_t id, bool keep_books)
{
    const uint64_t word = gate_.ticket(id).word.load();
    if (keep_books) {
        const std::lock_guard<std::mutex> guard(books_);
        lent_[id]++;
        lent_total_++;
    }
    const bool lent = gate_.Lend(id, word, word % 3 == 0);
    if (lent && gate_.Waiting() > 0)
        DispatchAll();
    if (keep_books && !lent) {
        // Unless its owner has cleared the account meanwhile.
        const std::lock_guard<std::mutex> guard(books_);
        if (lent_[id] > 0) {
            lent_[id]--;
            lent_total_--;
        }
    }
}

void GateThreadsTest::Supervise(std::mt19937 *random, bool keep_books)
{
    ReadAll();
    for (int i = 0; i < 4; i++)
        TryLend((*random)() % kThreads, keep_books);
    gate_.shared().limit.store(1 + (*random)() % kLimit);
    switch ((*random)() % 8) {
    case 0:
        Configure({Spec("a", 2, 0, 1), Spec("b", 3, kMostReserved, 0)});
        break;
    case 1:
        Configure({Spec("b", 1, 0, 0), Spec("c", 1, 0, 0)});
        break;
    case 2:
        Configure({});
        break;
    case 3:
        Configure({Spec("c", 1, 1, 2), Spec("d", 1, 0, 0), Spec("a", 1, 0, 0)});
        break;
    case 4:
        gate_.ResetStatistics();
        break;
    default:
        break;
    }
    DispatchAll();
}

void GateThreadsTest::Chaos(uint32_t iterations, bool keep_books)
{
    static const char *const names[] = {"default", "a", "b", "c"};
    const auto session = [&](uint32_t id, std::mt19937 *random) {
        for (uint32_t i = 0; i < iterations; i++) {
            const uint32_t found = gate_.FindClass(names[(*random)() % 4]);
            const uint32_t class_id = found == kMaxClasses ? kDefaultClass : found;
            if (!keep_books && (*random)() % 16 == 0)
                gate_.AcquireUncontrolled(id, class_id, 1);
            else if (!Acquire(id, class_id, (*random)() % 8 == 0))
                continue;
            acquired_.fetch_add(1, std::memory_order_relaxed);
            if (keep_books) {
                const std::lock_guard<std::mutex> guard(books_);
                const auto most = static_cast<int32_t>(kLimit + kMostReserved) + lent_total_;
                if (held_.fetch_add(1) >= most)
                    exceeded_.fetch_add(1);
            }
            for (uint32_t statement = (*random)() % 3; statement > 0; statement--) {
                std::this_thread::yield();
                gate_.Beat(id);
                gate_.Reclaim(id);
            }
            if (keep_books)
                held_.fetch_sub(1);
            Release(id);
            if (keep_books) {
                const std::lock_guard<std::mutex> guard(books_);
                lent_total_ -= lent_[id];
                lent_[id] = 0;
            }
        }
    };
    RunThreads(session, [&](std::mt19937 *random) { Supervise(random, keep_books); });
}

TEST_F(GateThreadsTest, NoWakeUpIsLostAndTheLimitHolds)
{
    Configure({Spec("a", 2, 0, 0), Spec("b", 3, 0, 0)});
    SessionsAlone(5000, kLimit);
}

TEST_F(GateThreadsTest, TheLastOfARoundIsWokenToo)
{
    gate_.shared().limit.store(1);
    InRounds(2, 50000);
    InRounds(3, 5000);
}

TEST_F(GateThreadsTest, ALimitOfOneIsAMutex)
{
    gate_.shared().limit.store(1);
    Configure({Spec("a", 1, 0, 0), Spec("b", 1, 0, 0)});
    SessionsAlone(2000, 1);
}

TEST_F(GateThreadsTest, ClassLimitsAndReservesLoseNoWakeUpEither)
{
    Configure({Spec("a", 2, 0, 1), Spec("b", 3, 1, 0)});
    SessionsAlone(4000, kLimit);
}

TEST_F(GateThreadsTest, ChaosLeavesNothing)
{
    Chaos(4000, false);
}

TEST_F(GateThreadsTest, ChaosStaysWithinTheLimitAndWhatWasLent)
{
    Chaos(4000, true);
}

} // namespace
} // namespace weir
