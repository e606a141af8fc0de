#include "admission/gate.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace weir
{
namespace
{

constexpr uint32_t kTickets = 256;

ClassSpec Spec(const char *name, uint32_t weight = 1, uint32_t reserved = 0, uint32_t max_active = 0,
               uint32_t queue_size = 0)
{
    ClassSpec spec = {};
    std::strncpy(spec.name, name, kClassNameSize - 1);
    spec.weight = weight;
    spec.reserved = reserved;
    spec.max_active = max_active;
    spec.queue_size = queue_size;
    return spec;
}

// Every test leaves the gate as empty as it found it.
class GateTest : public ::testing::Test
{
  protected:
    void SetUp() override
    {
        gate_.Init(shared_.get(), tickets_.get(), kTickets);
        gate_.shared().enforcing.store(1);
    }

    void TearDown() override
    {
        EXPECT_EQ(gate_.shared().load.load(), 0u);
        for (uint32_t i = 0; i < kMaxClasses; i++) {
            const GateClass &c = gate_.group(i);
            EXPECT_EQ(Gate::ClassActive(c), 0u) << i;
            EXPECT_EQ(c.waiting.load(), 0u) << i;
            EXPECT_EQ(c.head, kNoTicket) << i;
            EXPECT_EQ(c.tail, kNoTicket) << i;
        }
        for (uint32_t id = 0; id < kTickets; id++)
            EXPECT_EQ(gate_.State(id), TicketState::kFree) << id;
    }

    uint32_t Configure(const std::vector<ClassSpec> &list)
    {
        ClassSpecs specs = {};
        for (const ClassSpec &spec : list)
            specs.specs[specs.count++] = spec;
        return gate_.Configure(specs);
    }

    void SetLimit(uint32_t limit) { gate_.shared().limit.store(limit); }

    Admission Enqueue(uint32_t id, uint32_t class_id = kDefaultClass)
    {
        WakeList wake;
        return gate_.Enqueue(id, class_id, 1, &wake);
    }

    // Whom the next Dispatch() woke, in order.
    std::vector<uint32_t> Dispatch()
    {
        WakeList wake;
        gate_.Dispatch(0, &wake);
        return {wake.tickets, wake.tickets + wake.count};
    }

    // Gives a slot back as a session does.
    std::vector<uint32_t> Release(uint32_t id)
    {
        return gate_.Release(id) ? Dispatch() : std::vector<uint32_t>();
    }

    uint64_t WordOf(uint32_t id) { return gate_.ticket(id).word.load(); }

    void Drain()
    {
        for (uint32_t id = 0; id < kTickets; id++)
            gate_.Leave(id);
        for (uint32_t id = 0; id < kTickets; id++)
            gate_.Release(id);
    }

    std::unique_ptr<GateShared> shared_ = std::make_unique<GateShared>();
    std::unique_ptr<Ticket[]> tickets_ = std::make_unique<Ticket[]>(kTickets);
    Gate gate_;
};

using Ids = std::vector<uint32_t>;

// ---- the fast path

TEST_F(GateTest, TheFastPathEndsAtTheLimit)
{
    SetLimit(2);
    EXPECT_TRUE(gate_.TryAcquire(0, kDefaultClass, 17));
    EXPECT_TRUE(gate_.TryAcquire(1, kDefaultClass, 18));
    EXPECT_FALSE(gate_.TryAcquire(2, kDefaultClass, 19));
    EXPECT_EQ(gate_.Active(), 2u);
    EXPECT_EQ(gate_.State(0), TicketState::kHeld);
    EXPECT_EQ(gate_.State(2), TicketState::kFree);
    EXPECT_EQ(gate_.ticket(0).since_us.load(), 17);
    EXPECT_FALSE(gate_.Release(0)) << "nobody waits";
    EXPECT_TRUE(gate_.TryAcquire(2, kDefaultClass, 20));
    Drain();
}

TEST_F(GateTest, WithoutALimitEverybodyRuns)
{
    for (uint32_t id = 0; id < kTickets; id++)
        EXPECT_TRUE(gate_.TryAcquire(id, kDefaultClass, 1));
    Drain();
}

TEST_F(GateTest, NobodyOvertakesOneWhoWaits)
{
    SetLimit(1);
    ASSERT_TRUE(gate_.TryAcquire(0, kDefaultClass, 1));
    ASSERT_EQ(Enqueue(1), Admission::kQueued);
    // Between this and Dispatch() the slot is free, and still not for the taking.
    EXPECT_TRUE(gate_.Release(0));
    EXPECT_FALSE(gate_.TryAcquire(2, kDefaultClass, 2));
    EXPECT_FALSE(gate_.TryAcquire(0, kDefaultClass, 2));
    EXPECT_EQ(Dispatch(), Ids{1});
    Drain();
}

TEST_F(GateTest, AShapedGateHasNoFastPath)
{
    Configure({Spec("batch", 1, 0, 4)});
    EXPECT_FALSE(gate_.TryAcquire(0, kDefaultClass, 1));
    Configure({Spec("batch", 1, 1)});
    EXPECT_FALSE(gate_.TryAcquire(0, kDefaultClass, 1));
    Configure({Spec("batch", 8, 0, 0, 5)});
    EXPECT_TRUE(gate_.TryAcquire(0, kDefaultClass, 1));
    Drain();
}

// A process that was stopped between its compare-and-swap and the count of its class holds a slot.
TEST_F(GateTest, ASlotTakenThisMomentCounts)
{
    SetLimit(1);
    gate_.shared().load.fetch_add(1);
    EXPECT_EQ(Enqueue(1), Admission::kQueued);
    gate_.shared().load.fetch_sub(1);
    EXPECT_EQ(Dispatch(), Ids{1});
    Drain();
}

// ---- the queue

TEST_F(GateTest, AQueueIsFirstInFirstOut)
{
    SetLimit(1);
    EXPECT_EQ(Enqueue(9), Admission::kGranted);
    for (const uint32_t id : {5, 3, 8, 1})
        EXPECT_EQ(Enqueue(id), Admission::kQueued);
    EXPECT_EQ(gate_.Waiting(), 4u);
    EXPECT_EQ(Release(9), Ids{5});
    EXPECT_EQ(Release(5), Ids{3});
    EXPECT_EQ(Release(3), Ids{8});
    EXPECT_EQ(Release(8), Ids{1});
    EXPECT_EQ(Release(1), Ids{});
}

TEST_F(GateTest, EnqueueTakesASlotThatCameFreeMeanwhile)
{
    SetLimit(1);
    ASSERT_TRUE(gate_.TryAcquire(0, kDefaultClass, 1));
    EXPECT_FALSE(gate_.TryAcquire(1, kDefaultClass, 1));
    EXPECT_FALSE(gate_.Release(0)) << "nobody was in the queue yet";
    EXPECT_EQ(Enqueue(1), Admission::kGranted);
    Drain();
}

TEST_F(GateTest, OneSlotGoesToExactlyOne)
{
    SetLimit(3);
    for (uint32_t id = 0; id < 3; id++)
        Enqueue(id);
    for (uint32_t id = 3; id < 20; id++)
        Enqueue(id);
    EXPECT_EQ(Release(1).size(), 1u);
    EXPECT_EQ(Dispatch(), Ids{});
    EXPECT_EQ(gate_.Active(), 3u);
    SetLimit(5);
    EXPECT_EQ(Dispatch(), (Ids{4, 5}));
    SetLimit(2);
    EXPECT_EQ(Release(0), Ids{}) << "the limit was lowered";
    Drain();
}

TEST_F(GateTest, ThoseWhoLeaveKeepTheOrderOfTheRest)
{
    SetLimit(1);
    Enqueue(0);
    for (uint32_t id = 1; id <= 6; id++)
        Enqueue(id);
    EXPECT_TRUE(gate_.Leave(1)) << "first";
    EXPECT_TRUE(gate_.Leave(4)) << "middle";
    EXPECT_TRUE(gate_.Leave(6)) << "last";
    EXPECT_FALSE(gate_.Leave(4));
    Enqueue(4);
    uint32_t positions[kTickets] = {};
    gate_.PositionsOf(kDefaultClass, positions);
    EXPECT_EQ(positions[2], 0u);
    EXPECT_EQ(positions[3], 1u);
    EXPECT_EQ(positions[5], 2u);
    EXPECT_EQ(positions[4], 3u);
    EXPECT_EQ(Release(0), Ids{2});
    EXPECT_EQ(Release(2), Ids{3});
    EXPECT_EQ(Release(3), Ids{5});
    EXPECT_EQ(Release(5), Ids{4});
    Drain();
}

TEST_F(GateTest, WhoWasGrantedInTheSameMomentCannotLeave)
{
    SetLimit(1);
    Enqueue(0);
    Enqueue(1);
    Release(0);
    EXPECT_FALSE(gate_.Leave(1));
    EXPECT_EQ(gate_.State(1), TicketState::kHeld);
    Drain();
}

TEST_F(GateTest, ReleaseIsForThoseWhoHold)
{
    SetLimit(1);
    EXPECT_FALSE(gate_.Release(3)) << "free";
    Enqueue(0);
    Enqueue(1);
    EXPECT_FALSE(gate_.Release(1)) << "waiting";
    EXPECT_EQ(gate_.State(1), TicketState::kWaiting);
    EXPECT_EQ(gate_.Active(), 1u);
    EXPECT_EQ(gate_.Waiting(), 1u);
    Drain();
}

TEST_F(GateTest, GrantOverExceedsTheLimitOnce)
{
    SetLimit(1);
    Enqueue(0);
    Enqueue(1);
    Enqueue(2);
    EXPECT_TRUE(gate_.GrantOver(2)) << "not the first: the one that blocks somebody";
    EXPECT_FALSE(gate_.GrantOver(2));
    EXPECT_FALSE(gate_.GrantOver(3));
    EXPECT_EQ(gate_.Active(), 2u);
    EXPECT_EQ(gate_.group(kDefaultClass).over.load(), 1u);
    EXPECT_EQ(Release(2), Ids{}) << "still at the limit";
    EXPECT_EQ(Release(0), Ids{1});
    Drain();
}

TEST_F(GateTest, TheQueueHasASize)
{
    SetLimit(1);
    gate_.shared().queue_size.store(2);
    Enqueue(0);
    EXPECT_EQ(Enqueue(1), Admission::kQueued);
    EXPECT_EQ(Enqueue(2), Admission::kQueued);
    EXPECT_EQ(Enqueue(3), Admission::kFull);
    EXPECT_EQ(gate_.State(3), TicketState::kFree);
    EXPECT_EQ(gate_.Waiting(), 2u);
    EXPECT_TRUE(gate_.Leave(1));
    EXPECT_EQ(Enqueue(3), Admission::kQueued) << "the place is used again";
    EXPECT_EQ(gate_.group(kDefaultClass).queued.load(), 3u);
    Drain();
}

TEST_F(GateTest, AClassHasAQueueSizeOfItsOwn)
{
    SetLimit(1);
    gate_.shared().queue_size.store(3);
    Configure({Spec("batch", 1, 0, 0, 1)});
    const uint32_t batch = gate_.FindClass("batch");
    Enqueue(0);
    EXPECT_EQ(Enqueue(1, batch), Admission::kQueued);
    EXPECT_EQ(Enqueue(2, batch), Admission::kFull);
    EXPECT_EQ(Enqueue(2), Admission::kQueued);
    EXPECT_EQ(Enqueue(3), Admission::kQueued);
    EXPECT_EQ(Enqueue(4), Admission::kFull) << "the gate's";
    Drain();
}

// Otherwise a flood of one class would lock out all the others.
TEST_F(GateTest, AFullQueueTurnsNobodyAwayWhoNeedNotWait)
{
    SetLimit(4);
    gate_.shared().queue_size.store(2);
    Configure({Spec("batch", 1, 0, 1)});
    const uint32_t batch = gate_.FindClass("batch");
    EXPECT_EQ(Enqueue(0, batch), Admission::kGranted);
    EXPECT_EQ(Enqueue(1, batch), Admission::kQueued);
    EXPECT_EQ(Enqueue(2, batch), Admission::kQueued);
    EXPECT_EQ(Enqueue(3, batch), Admission::kFull);
    EXPECT_EQ(Enqueue(4), Admission::kGranted);
    Drain();
}

// ---- classes

TEST_F(GateTest, AClassLimitHoldsItsClassOnly)
{
    SetLimit(4);
    Configure({Spec("batch", 1000, 0, 2)});
    const uint32_t batch = gate_.FindClass("batch");
    EXPECT_EQ(Enqueue(0, batch), Admission::kGranted);
    EXPECT_EQ(Enqueue(1, batch), Admission::kGranted);
    EXPECT_EQ(Enqueue(2, batch), Admission::kQueued);
    EXPECT_EQ(Enqueue(3), Admission::kGranted) << "batch's waiter is held by its own limit";
    EXPECT_EQ(Enqueue(4), Admission::kGranted);
    EXPECT_EQ(Enqueue(5), Admission::kQueued);
    EXPECT_EQ(Release(3), Ids{5});
    EXPECT_EQ(Release(0), Ids{2});
    Drain();
}

TEST_F(GateTest, ReservedSlotsAreKeptForTheirClass)
{
    SetLimit(4);
    Configure({Spec("interactive", 1, 2)});
    const uint32_t interactive = gate_.FindClass("interactive");
    EXPECT_EQ(Enqueue(0), Admission::kGranted);
    EXPECT_EQ(Enqueue(1), Admission::kGranted);
    EXPECT_EQ(Enqueue(2), Admission::kQueued) << "the other two are reserved";
    EXPECT_EQ(Enqueue(10, interactive), Admission::kGranted) << "past one who waits longer";
    EXPECT_EQ(Enqueue(11, interactive), Admission::kGranted);
    EXPECT_EQ(Enqueue(12, interactive), Admission::kQueued);
    EXPECT_EQ(gate_.Active(), 4u);
    EXPECT_EQ(Release(10), Ids{12}) << "the reserve first";
    EXPECT_EQ(Release(0), Ids{2});
    Drain();
}

TEST_F(GateTest, AClassPastItsReserveSharesThePool)
{
    SetLimit(3);
    Configure({Spec("interactive", 1, 1)});
    const uint32_t interactive = gate_.FindClass("interactive");
    for (uint32_t id = 0; id < 3; id++)
        EXPECT_EQ(Enqueue(id, interactive), Admission::kGranted);
    EXPECT_EQ(Enqueue(3, interactive), Admission::kQueued);
    EXPECT_EQ(Enqueue(4), Admission::kQueued);
    Drain();
}

TEST_F(GateTest, ReservesNeverStarveTheOthers)
{
    SetLimit(2);
    Configure({Spec("a", 1, 3), Spec("b", 1, 4)});
    const uint32_t a = gate_.FindClass("a");
    EXPECT_EQ(Enqueue(0), Admission::kGranted) << "the pool is never less than one slot";
    EXPECT_EQ(Enqueue(1), Admission::kQueued);
    for (uint32_t id = 10; id < 13; id++)
        EXPECT_EQ(Enqueue(id, a), Admission::kGranted) << "guaranteed, whatever the limit is";
    EXPECT_EQ(Enqueue(13, a), Admission::kQueued);
    EXPECT_EQ(Release(0), Ids{13}) << "the pool's slot is shared in turns, past the reserve too";
    EXPECT_EQ(Release(13), Ids{1});
    Drain();
}

TEST_F(GateTest, TheDefaultClassCanBeTuned)
{
    Configure({Spec(kDefaultClassName, 5, 0, 1)});
    EXPECT_EQ(gate_.group(kDefaultClass).weight, 5u);
    EXPECT_EQ(Enqueue(0), Admission::kGranted);
    EXPECT_EQ(Enqueue(1), Admission::kQueued);
    Configure({});
    EXPECT_EQ(gate_.group(kDefaultClass).weight, 1u);
    EXPECT_EQ(Dispatch(), Ids{1}) << "its limit is gone";
    Drain();
}

TEST_F(GateTest, ClassesKeepTheirIndex)
{
    EXPECT_EQ(Configure({Spec("a"), Spec("b"), Spec("c")}), 0u);
    const uint32_t a = gate_.FindClass("a");
    const uint32_t c = gate_.FindClass("c");
    Enqueue(0, c);
    EXPECT_EQ(Configure({Spec("c", 7), Spec("a")}), 0u);
    EXPECT_EQ(gate_.FindClass("a"), a);
    EXPECT_EQ(gate_.FindClass("c"), c);
    EXPECT_EQ(gate_.group(c).weight, 7u);
    EXPECT_EQ(gate_.FindClass("b"), kMaxClasses);
    EXPECT_EQ(gate_.FindClass("nobody"), kMaxClasses);
    EXPECT_EQ(gate_.FindClass(""), kMaxClasses);
    Drain();
}

TEST_F(GateTest, ARemovedClassServesThoseItHas)
{
    SetLimit(2);
    Configure({Spec("batch", 1, 0, 1)});
    const uint32_t batch = gate_.FindClass("batch");
    Enqueue(0, batch);
    Enqueue(1, batch);
    EXPECT_EQ(Configure({Spec("other")}), 0u);
    EXPECT_NE(gate_.FindClass("other"), batch) << "still in use";
    EXPECT_EQ(Dispatch(), Ids{1}) << "without its limit";
    EXPECT_EQ(Configure({Spec("other"), Spec("batch", 3)}), 0u);
    EXPECT_EQ(gate_.FindClass("batch"), batch) << "back where its transactions are";
    Drain();
    Configure({});
    EXPECT_EQ(Configure({Spec("x"), Spec("y")}), 0u);
    EXPECT_TRUE(gate_.FindClass("x") == batch || gate_.FindClass("y") == batch) << "idle: used again";
}

TEST_F(GateTest, AnEntryUsedAgainBeginsItsStatistics)
{
    Configure({Spec("batch")});
    const uint32_t batch = gate_.FindClass("batch");
    GateClass &c = gate_.group(batch);
    Enqueue(0, batch);
    Release(0);
    c.departures[0].store(4);
    c.waits.Record(100);
    Configure({});
    Configure({Spec("other")});
    ASSERT_EQ(gate_.FindClass("other"), batch);
    EXPECT_STREQ(c.name, "other");
    EXPECT_EQ(Gate::ClassAdmitted(c), c.admitted_base.load());
    EXPECT_EQ(c.departures[0].load(), 0u);
    EXPECT_EQ(c.waits.Snapshot().Count(), 0u);
}

TEST_F(GateTest, AFullTableLeavesClassesOut)
{
    ClassSpecs specs = {};
    for (uint32_t i = 0; i < kMaxClasses; i++)
        specs.specs[specs.count++] = Spec(("c" + std::to_string(i)).c_str());
    EXPECT_EQ(gate_.Configure(specs), 1u) << "one entry is the default class's";
    EXPECT_EQ(gate_.FindClass("c30"), kMaxClasses - 1);
    EXPECT_EQ(gate_.FindClass("c31"), kMaxClasses);
    // An entry that is in use is not to be had, though its class is gone.
    Enqueue(0, gate_.FindClass("c7"));
    EXPECT_EQ(Configure({}), 0u);
    for (uint32_t i = 0; i < kMaxClasses; i++)
        specs.specs[i] = Spec(("d" + std::to_string(i)).c_str());
    EXPECT_EQ(gate_.Configure(specs), 2u);
    Drain();
    EXPECT_EQ(gate_.Configure(specs), 1u);
}

TEST_F(GateTest, NamesMayBeAsLongAsTheyCan)
{
    const std::string longest(kClassNameSize - 1, 'x');
    Configure({Spec(longest.c_str()), Spec("x")});
    EXPECT_NE(gate_.FindClass(longest.c_str()), kMaxClasses);
    EXPECT_NE(gate_.FindClass("x"), gate_.FindClass(longest.c_str()));
    EXPECT_EQ(gate_.FindClass("xx"), kMaxClasses);
}

TEST_F(GateTest, AClassInheritsTheQueueTimeout)
{
    ClassSpec none = Spec("none");
    none.queue_timeout_set = true;
    ClassSpec own = Spec("own");
    own.queue_timeout_set = true;
    own.queue_timeout_ms = 500;
    Configure({none, own});
    gate_.shared().queue_timeout_ms.store(30000);
    EXPECT_EQ(gate_.QueueTimeoutMs(kDefaultClass), 30000);
    EXPECT_EQ(gate_.QueueTimeoutMs(gate_.FindClass("none")), 0);
    EXPECT_EQ(gate_.QueueTimeoutMs(gate_.FindClass("own")), 500);
}

// ---- shares

struct Load {
    uint32_t class_id;
    uint32_t first; // its tickets
    uint32_t count;
    uint64_t grants;
};

class GateShareTest : public GateTest
{
  protected:
    // Every session of a load queues again as soon as it has had its slot.
    void Join(Load *load)
    {
        for (uint32_t id = load->first; id < load->first + load->count; id++) {
            owner_[id] = load;
            if (Enqueue(id, load->class_id) == Admission::kGranted)
                running_.push_back(id);
        }
    }

    // Its sessions do not come back.
    void Part(Load *load)
    {
        for (uint32_t id = load->first; id < load->first + load->count; id++) {
            owner_[id] = nullptr;
            gate_.Leave(id);
        }
    }

    void HandOff(uint32_t times)
    {
        for (uint32_t i = 0; i < times; i++) {
            ASSERT_FALSE(running_.empty()) << "a slot was lost";
            const uint32_t id = running_.front();
            running_.pop_front();
            for (const uint32_t next : Release(id)) {
                running_.push_back(next);
                if (owner_[next] != nullptr)
                    owner_[next]->grants++;
            }
            if (owner_[id] != nullptr && Enqueue(id, owner_[id]->class_id) == Admission::kGranted) {
                running_.push_back(id);
                owner_[id]->grants++;
            }
        }
    }

    std::deque<uint32_t> running_;
    Load *owner_[kTickets] = {};
};

void ExpectShare(const Load &load, double share, uint64_t of)
{
    EXPECT_NEAR(static_cast<double>(load.grants), share * static_cast<double>(of),
                0.1 * share * static_cast<double>(of))
        << "class " << load.class_id;
}

TEST_F(GateShareTest, SharesAreTheWeights)
{
    SetLimit(4);
    Configure({Spec("a", 1), Spec("b", 2), Spec("c", 8), Spec("d", 21)});
    Load loads[] = {{gate_.FindClass("a"), 0, 20, 0},
                    {gate_.FindClass("b"), 20, 40, 0},
                    {gate_.FindClass("c"), 60, 10, 0},
                    {gate_.FindClass("d"), 70, 30, 0}};
    for (Load &load : loads)
        Join(&load);
    HandOff(10000);
    const double weights[] = {1, 2, 8, 21};
    for (int i = 0; i < 4; i++)
        ExpectShare(loads[i], weights[i] / 32, 10000);
    Drain();
}

TEST_F(GateShareTest, EqualWeightsShareEqually)
{
    SetLimit(3);
    Configure({Spec("a"), Spec("b")});
    Load loads[] = {
        {kDefaultClass, 0, 100, 0}, {gate_.FindClass("a"), 100, 10, 0}, {gate_.FindClass("b"), 110, 5, 0}};
    for (Load &load : loads)
        Join(&load);
    HandOff(9999);
    for (const Load &load : loads)
        ExpectShare(load, 1.0 / 3, 9999);
    Drain();
}

TEST_F(GateShareTest, WhoWasAwayHasSavedNothing)
{
    SetLimit(2);
    Configure({Spec("a", 1), Spec("b", 3), Spec("guest", 4)});
    Load a = {gate_.FindClass("a"), 0, 10, 0};
    Load b = {gate_.FindClass("b"), 10, 10, 0};
    Load guest = {gate_.FindClass("guest"), 20, 10, 0};
    Join(&a);
    Join(&b);
    for (int visit = 0; visit < 5; visit++) {
        HandOff(1000);
        a.grants = b.grants = guest.grants = 0;
        Join(&guest);
        HandOff(80);
        // Of a short visit, so that a burst at its beginning would show.
        EXPECT_NEAR(static_cast<double>(guest.grants), 40, 4);
        EXPECT_NEAR(static_cast<double>(b.grants), 30, 4);
        EXPECT_NEAR(static_cast<double>(a.grants), 10, 3);
        Part(&guest);
        HandOff(20);
    }
    Drain();
}

// A class with a reserve runs more than its share; its grants must not set the clock by which the others
// begin.
TEST_F(GateShareTest, AReserveDoesNotCostTheOthersTheirTurn)
{
    SetLimit(4);
    Configure({Spec("vip", 1, 3), Spec("a", 8), Spec("b", 8)});
    Load vip = {gate_.FindClass("vip"), 0, 20, 0};
    Load a = {gate_.FindClass("a"), 20, 20, 0};
    Load b = {gate_.FindClass("b"), 40, 20, 0};
    Join(&vip);
    Join(&a);
    HandOff(4000);
    EXPECT_GT(vip.grants, 2900u);
    a.grants = b.grants = 0;
    Join(&b);
    HandOff(400);
    EXPECT_GT(b.grants, 30u);
    EXPECT_NEAR(static_cast<double>(a.grants), static_cast<double>(b.grants), 6);
    Drain();
}

// A class held back by its own limit falls behind; neither it nor one that comes after it may catch up.
TEST_F(GateShareTest, AClassLimitSavesNoCredit)
{
    SetLimit(4);
    Configure({Spec("capped", 1000, 0, 1), Spec("a"), Spec("b")});
    Load capped = {gate_.FindClass("capped"), 0, 10, 0};
    Load a = {gate_.FindClass("a"), 20, 20, 0};
    Load b = {gate_.FindClass("b"), 40, 20, 0};
    Join(&capped);
    Join(&a);
    HandOff(4000);
    EXPECT_NEAR(static_cast<double>(capped.grants), 1000, 100);
    a.grants = b.grants = 0;
    Join(&b);
    HandOff(400);
    EXPECT_NEAR(static_cast<double>(b.grants), 150, 15);
    EXPECT_NEAR(static_cast<double>(a.grants), 150, 15);

    Configure({Spec("capped", 1), Spec("a"), Spec("b")});
    capped.grants = a.grants = b.grants = 0;
    HandOff(300);
    ExpectShare(capped, 1.0 / 3, 300);
    Drain();
}

// ---- lending

TEST_F(GateTest, ALentSlotIsAnothersAndComesBackOverTheLimit)
{
    SetLimit(1);
    Enqueue(0);
    Enqueue(1);
    EXPECT_FALSE(gate_.Reclaim(0)) << "not lent";
    EXPECT_TRUE(gate_.Lend(0, WordOf(0), false));
    EXPECT_EQ(gate_.State(0), TicketState::kLent);
    EXPECT_EQ(gate_.Active(), 0u);
    EXPECT_EQ(Dispatch(), Ids{1});
    EXPECT_TRUE(gate_.Reclaim(0));
    EXPECT_FALSE(gate_.Reclaim(0));
    EXPECT_EQ(gate_.Active(), 2u);
    Enqueue(2);
    EXPECT_EQ(Release(0), Ids{}) << "over the limit by one";
    EXPECT_EQ(Release(1), Ids{2});
    EXPECT_EQ(gate_.group(kDefaultClass).lendings.load(), 1u);
    Drain();
}

TEST_F(GateTest, ALentSlotIsReleasedWithoutCountingTwice)
{
    SetLimit(1);
    Enqueue(0);
    EXPECT_TRUE(gate_.Lend(0, WordOf(0), false));
    EXPECT_FALSE(gate_.Release(0));
    EXPECT_EQ(gate_.Active(), 0u);
    EXPECT_EQ(gate_.State(0), TicketState::kFree);
    EXPECT_FALSE(gate_.Reclaim(0));
    EXPECT_TRUE(gate_.TryAcquire(1, kDefaultClass, 1));
    Drain();
}

TEST_F(GateTest, ASlotIsLentAgainAndAgain)
{
    SetLimit(1);
    gate_.TryAcquire(0, kDefaultClass, 1);
    for (int i = 0; i < 3; i++) {
        EXPECT_TRUE(gate_.Lend(0, WordOf(0), false));
        EXPECT_FALSE(gate_.Lend(0, WordOf(0), false)) << "lent already";
        EXPECT_TRUE(gate_.Reclaim(0));
        EXPECT_EQ(gate_.Active(), 1u);
    }
    Drain();
}

TEST_F(GateTest, OnlyTheAcquisitionThatWasLookedAtIsLent)
{
    SetLimit(1);
    gate_.TryAcquire(0, kDefaultClass, 1);
    const uint64_t first = WordOf(0);
    Release(0);
    EXPECT_FALSE(gate_.Lend(0, first, false)) << "released";
    gate_.TryAcquire(0, kDefaultClass, 1);
    EXPECT_FALSE(gate_.Lend(0, first, false)) << "the next transaction, by the fast path";
    const uint64_t second = WordOf(0);
    Release(0);
    Enqueue(0);
    EXPECT_FALSE(gate_.Lend(0, second, false)) << "the next transaction, by the queue";
    Enqueue(1);
    EXPECT_FALSE(gate_.Lend(1, WordOf(1), false)) << "waiting";
    EXPECT_FALSE(gate_.Lend(2, WordOf(2), false)) << "free";
    EXPECT_EQ(gate_.State(0), TicketState::kHeld);
    EXPECT_EQ(gate_.group(kDefaultClass).lendings.load(), 0u);
    Drain();
}

TEST_F(GateTest, AStalledSlotSaysSoUntilItsOwnerIsBack)
{
    gate_.TryAcquire(0, kDefaultClass, 1);
    gate_.Lend(0, WordOf(0), true);
    EXPECT_EQ(gate_.ticket(0).stalled.load(), 1u);
    gate_.Reclaim(0);
    EXPECT_EQ(gate_.ticket(0).stalled.load(), 0u);
    gate_.Lend(0, WordOf(0), true);
    gate_.Release(0);
    gate_.TryAcquire(0, kDefaultClass, 1);
    EXPECT_EQ(gate_.ticket(0).stalled.load(), 0u);
    gate_.Lend(0, WordOf(0), true);
    gate_.Release(0);
    Enqueue(0);
    EXPECT_EQ(gate_.ticket(0).stalled.load(), 0u);
    Drain();
}

TEST_F(GateTest, ALentSlotOfALimitedClassMakesRoomInIt)
{
    Configure({Spec("batch", 1, 0, 1)});
    const uint32_t batch = gate_.FindClass("batch");
    Enqueue(0, batch);
    Enqueue(1, batch);
    gate_.Lend(0, WordOf(0), true);
    EXPECT_EQ(Dispatch(), Ids{1});
    gate_.Reclaim(0);
    EXPECT_EQ(Gate::ClassActive(gate_.group(batch)), 2u);
    Drain();
}

// ---- modes, waking, statistics

TEST_F(GateTest, ObservingHoldsNobodyUpAndSaysWhoWouldWait)
{
    SetLimit(2);
    Configure({Spec("batch", 1, 0, 1)});
    const uint32_t batch = gate_.FindClass("batch");
    EXPECT_FALSE(gate_.AcquireUncontrolled(0, batch, 1));
    EXPECT_TRUE(gate_.AcquireUncontrolled(1, batch, 1)) << "its class is full";
    EXPECT_TRUE(gate_.AcquireUncontrolled(2, kDefaultClass, 1)) << "the gate is full";
    EXPECT_EQ(gate_.Active(), 3u);
    Release(0);
    Release(1);
    EXPECT_FALSE(gate_.AcquireUncontrolled(3, kDefaultClass, 1));
    Drain();
}

TEST_F(GateTest, WhenNotEnforcingDispatchGrantsEverybody)
{
    SetLimit(1);
    Configure({Spec("batch", 1, 2, 1)});
    const uint32_t batch = gate_.FindClass("batch");
    for (uint32_t id = 0; id < 10; id++)
        Enqueue(id, id % 2 == 0 ? batch : kDefaultClass);
    EXPECT_GT(gate_.Waiting(), 0u);
    gate_.shared().enforcing.store(0);
    EXPECT_EQ(Dispatch().size(), 8u);
    EXPECT_EQ(gate_.Waiting(), 0u);
    EXPECT_EQ(gate_.Active(), 10u);
    Drain();
}

TEST_F(GateTest, AFullWakeListIsContinued)
{
    SetLimit(1);
    for (uint32_t id = 0; id < 200; id++)
        Enqueue(id);
    SetLimit(kUnlimited);
    WakeList wake;
    uint32_t next = 1;
    uint32_t rounds = 0;
    do {
        wake.count = 0;
        gate_.Dispatch(0, &wake);
        for (uint32_t i = 0; i < wake.count; i++)
            EXPECT_EQ(wake.tickets[i], next++);
        rounds++;
    } while (wake.Full());
    EXPECT_EQ(next, 200u);
    EXPECT_EQ(rounds, 4u);
    EXPECT_EQ(gate_.Waiting(), 0u);
    Drain();
}

TEST_F(GateTest, DispatchAddsToWhatTheListHas)
{
    SetLimit(1);
    Enqueue(0);
    Enqueue(1);
    Release(0);
    WakeList wake;
    wake.count = WakeList::kCapacity;
    Enqueue(2);
    SetLimit(2);
    gate_.Dispatch(0, &wake);
    EXPECT_EQ(gate_.State(2), TicketState::kWaiting) << "no room to wake it";
    wake.count--;
    gate_.Dispatch(0, &wake);
    EXPECT_EQ(wake.tickets[WakeList::kCapacity - 1], 2u);
    Drain();
}

TEST_F(GateTest, ResetForgetsStatisticsAndNothingElse)
{
    SetLimit(1);
    GateClass &c = gate_.group(kDefaultClass);
    Enqueue(0);
    Enqueue(1);
    Enqueue(2);
    gate_.GrantOver(1);
    gate_.Lend(1, WordOf(1), false);
    c.bypassed.fetch_add(1);
    c.departures[2].fetch_add(1);
    c.waits.Record(5);
    EXPECT_EQ(Gate::ClassAdmitted(c), 2u);
    EXPECT_EQ(c.queued.load(), 2u);
    gate_.ResetStatistics();
    EXPECT_EQ(Gate::ClassAdmitted(c) - c.admitted_base.load(), 0u);
    EXPECT_EQ(c.queued.load() + c.bypassed.load() + c.over.load() + c.lendings.load(), 0u);
    EXPECT_EQ(c.departures[2].load(), 0u);
    EXPECT_EQ(c.waits.Snapshot().Count(), 0u);
    EXPECT_EQ(gate_.Active(), 1u);
    EXPECT_EQ(gate_.Waiting(), 1u);
    EXPECT_EQ(Release(0), Ids{2});
    EXPECT_EQ(Gate::ClassAdmitted(c) - c.admitted_base.load(), 1u);
    Drain();
}

TEST_F(GateTest, ATicketCountsWhatItWasServed)
{
    SetLimit(1);
    gate_.TryAcquire(0, kDefaultClass, 1);
    Release(0);
    Enqueue(0);
    EXPECT_EQ(gate_.ticket(0).served.load(), 2u);
    gate_.Beat(0);
    EXPECT_EQ(gate_.ticket(0).beats.load(), 1u);
    Drain();
}

TEST_F(GateTest, InitStartsFromNothing)
{
    SetLimit(1);
    Configure({Spec("batch")});
    Enqueue(0);
    Enqueue(1);
    gate_.Init(shared_.get(), tickets_.get(), kTickets);
    EXPECT_EQ(gate_.FindClass("batch"), kMaxClasses);
    EXPECT_EQ(gate_.FindClass(kDefaultClassName), kDefaultClass);
}

// ---- random operations against a model

// What the gate promises, written the slow way. Which of several classes is next is not modelled (the shares
// are tested above), only who may be.
struct Model {
    TicketState states[kTickets] = {};
    uint32_t classes[kTickets] = {};
    std::deque<uint32_t> queues[kMaxClasses];
    uint64_t admitted[kMaxClasses] = {};

    uint32_t Active(uint32_t class_id) const
    {
        uint32_t active = 0;
        for (uint32_t id = 0; id < kTickets; id++)
            active +=
                states[id] == TicketState::kHeld && (class_id == kMaxClasses || classes[id] == class_id);
        return active;
    }
    uint32_t Waiting() const
    {
        uint32_t waiting = 0;
        for (const auto &queue : queues)
            waiting += static_cast<uint32_t>(queue.size());
        return waiting;
    }
    void Remove(uint32_t id)
    {
        auto &queue = queues[classes[id]];
        for (auto at = queue.begin(); at != queue.end(); ++at) {
            if (*at == id) {
                queue.erase(at);
                return;
            }
        }
    }
};

class GateModelTest : public GateTest
{
  protected:
    static constexpr uint32_t kSessions = 24; // few, so that every state meets every other

    void RandomStep();
    void RandomConfigure();
    void Check();

    uint32_t Random(uint32_t below) { return static_cast<uint32_t>(random_() % below); }

    bool MayRun(uint32_t i)
    {
        const GateClass &c = gate_.group(i);
        if (model_.queues[i].empty())
            return false;
        if (gate_.shared().enforcing.load() == 0)
            return true;
        const uint32_t active = model_.Active(i);
        if (c.max_active != 0 && active >= c.max_active)
            return false;
        if (active < c.reserved)
            return true;
        uint32_t pooled = 0;
        uint32_t reserved = 0;
        for (uint32_t k = 0; k < kMaxClasses; k++) {
            const uint32_t of_class = model_.Active(k);
            const uint32_t reserve = gate_.group(k).reserved;
            pooled += of_class > reserve ? of_class - reserve : 0;
            reserved += reserve;
        }
        const uint32_t limit = gate_.shared().limit.load();
        return pooled < (limit > reserved ? limit - reserved : 1);
    }

    bool AnyUnderReserve()
    {
        for (uint32_t i = 0; i < kMaxClasses; i++) {
            if (MayRun(i) && model_.Active(i) < gate_.group(i).reserved)
                return true;
        }
        return false;
    }

    void Held(uint32_t id)
    {
        model_.states[id] = TicketState::kHeld;
        model_.admitted[model_.classes[id]]++;
    }

    // Every grant was the first's of a class that might run; afterwards nobody is left who may.
    void Replay(const WakeList &wake, uint32_t from)
    {
        for (uint32_t i = from; i < wake.count; i++) {
            const uint32_t id = wake.tickets[i];
            const uint32_t class_id = model_.classes[id];
            ASSERT_FALSE(model_.queues[class_id].empty());
            ASSERT_EQ(model_.queues[class_id].front(), id);
            ASSERT_TRUE(MayRun(class_id));
            if (AnyUnderReserve()) {
                ASSERT_LT(model_.Active(class_id), gate_.group(class_id).reserved);
            }
            model_.queues[class_id].pop_front();
            Held(id);
        }
        if (wake.Full())
            return;
        for (uint32_t i = 0; i < kMaxClasses; i++)
            ASSERT_FALSE(MayRun(i)) << "a waiter of class " << i << " was forgotten";
    }

    void DispatchAndReplay()
    {
        WakeList wake;
        wake.count = Random(8) == 0 ? WakeList::kCapacity - Random(3) : 0;
        const uint32_t from = wake.count;
        gate_.Dispatch(0, &wake);
        Replay(wake, from);
    }

    std::mt19937_64 random_{20240229};
    Model model_;
    uint64_t words_[kTickets] = {};
};

void GateModelTest::RandomConfigure()
{
    static const char *const names[] = {"a", "b", "c", "d", "e", kDefaultClassName};
    std::vector<ClassSpec> specs;
    for (const char *name : names) {
        if (Random(2) == 0)
            specs.push_back(Spec(name, 1 + Random(9), Random(3) == 0 ? Random(4) : 0,
                                 Random(3) == 0 ? 1 + Random(4) : 0, Random(4) == 0 ? 1 + Random(5) : 0));
    }
    if (Random(2) == 0) {
        for (ClassSpec &spec : specs)
            spec.reserved = spec.max_active = 0;
    }
    ASSERT_EQ(Configure(specs), 0u);
    for (const ClassSpec &spec : specs) {
        ASSERT_NE(gate_.FindClass(spec.name), kMaxClasses);
        ASSERT_EQ(gate_.group(gate_.FindClass(spec.name)).max_active, spec.max_active);
    }
}

void GateModelTest::RandomStep()
{
    const uint32_t id = Random(kSessions);
    uint32_t class_id = Random(8);
    if (gate_.group(class_id).in_use.load() == 0)
        class_id = kDefaultClass;
    const TicketState state = model_.states[id];
    const uint32_t limit = gate_.shared().limit.load();
    const uint32_t active = model_.Active(kMaxClasses);

    switch (Random(16)) {
    case 0:
    case 1: {
        if (state != TicketState::kFree)
            return;
        const bool free = gate_.shared().shaped.load() == 0 && model_.Waiting() == 0 && active < limit;
        ASSERT_EQ(gate_.TryAcquire(id, class_id, 1), free);
        model_.classes[id] = class_id;
        if (free)
            Held(id);
        return;
    }
    case 2:
    case 3:
    case 4:
    case 5: {
        if (state != TicketState::kFree)
            return;
        const GateClass &c = gate_.group(class_id);
        const uint32_t size = gate_.shared().queue_size.load();
        const bool full = (c.queue_size != 0 && model_.queues[class_id].size() >= c.queue_size) ||
                          (size != 0 && model_.Waiting() >= size);
        WakeList wake;
        const Admission admission = gate_.Enqueue(id, class_id, 1, &wake);
        model_.classes[id] = class_id;
        model_.states[id] = TicketState::kWaiting;
        model_.queues[class_id].push_back(id);
        Replay(wake, 0);
        if (model_.states[id] == TicketState::kHeld) {
            ASSERT_EQ(admission, Admission::kGranted);
        } else if (full) {
            ASSERT_EQ(admission, Admission::kFull);
            model_.Remove(id);
            model_.states[id] = TicketState::kFree;
        } else {
            ASSERT_EQ(admission, Admission::kQueued);
        }
        return;
    }
    case 6:
        ASSERT_EQ(gate_.Leave(id), state == TicketState::kWaiting);
        if (state == TicketState::kWaiting) {
            model_.Remove(id);
            model_.states[id] = TicketState::kFree;
        }
        return;
    case 7:
    case 8:
    case 9:
        ASSERT_EQ(gate_.Release(id), state == TicketState::kHeld && model_.Waiting() > 0);
        if (state != TicketState::kWaiting)
            model_.states[id] = TicketState::kFree;
        if (state == TicketState::kHeld)
            DispatchAndReplay();
        return;
    case 10:
        words_[id] = WordOf(id);
        return;
    case 11: {
        // The word may be from any time before. Reclaiming is no new acquisition.
        const bool current = state == TicketState::kHeld && WordOf(id) == words_[id];
        ASSERT_EQ(gate_.Lend(id, words_[id], Random(2) == 0), current);
        if (current) {
            model_.states[id] = TicketState::kLent;
            DispatchAndReplay();
        }
        return;
    }
    case 12:
        ASSERT_EQ(gate_.Reclaim(id), state == TicketState::kLent);
        if (state == TicketState::kLent)
            model_.states[id] = TicketState::kHeld;
        return;
    case 13:
        if (Random(8) != 0)
            return;
        ASSERT_EQ(gate_.GrantOver(id), state == TicketState::kWaiting);
        if (state == TicketState::kWaiting) {
            model_.Remove(id);
            Held(id);
        }
        return;
    case 14:
        SetLimit(Random(10));
        gate_.shared().queue_size.store(Random(3) == 0 ? 1 + Random(8) : 0);
        gate_.shared().enforcing.store(Random(20) != 0);
        DispatchAndReplay();
        return;
    default:
        if (Random(8) == 0) {
            RandomConfigure();
            DispatchAndReplay();
        } else if (state == TicketState::kFree && Random(8) == 0) {
            const GateClass &c = gate_.group(class_id);
            const bool full = c.max_active != 0 && model_.Active(class_id) >= c.max_active;
            ASSERT_EQ(gate_.AcquireUncontrolled(id, class_id, 1), full || active >= limit);
            model_.classes[id] = class_id;
            Held(id);
        }
    }
}

void GateModelTest::Check()
{
    ASSERT_EQ(gate_.Active(), model_.Active(kMaxClasses));
    ASSERT_EQ(gate_.Waiting(), model_.Waiting());
    for (uint32_t id = 0; id < kSessions; id++)
        ASSERT_EQ(gate_.State(id), model_.states[id]) << id;
    for (uint32_t i = 0; i < 8; i++) {
        const GateClass &c = gate_.group(i);
        ASSERT_EQ(Gate::ClassActive(c), model_.Active(i));
        ASSERT_EQ(c.waiting.load(), model_.queues[i].size());
        ASSERT_EQ(Gate::ClassAdmitted(c), model_.admitted[i]);
        uint32_t previous = kNoTicket;
        uint32_t at = c.head;
        for (const uint32_t id : model_.queues[i]) {
            ASSERT_EQ(at, id);
            ASSERT_EQ(gate_.ticket(id).previous, previous);
            previous = id;
            at = gate_.ticket(id).next;
        }
        ASSERT_EQ(at, kNoTicket);
        ASSERT_EQ(c.tail, previous);
    }
}

TEST_F(GateModelTest, AnyOrderOfOperationsIsAsTheModelSays)
{
    SetLimit(3);
    for (int step = 0; step < 100000; step++) {
        RandomStep();
        Check();
        if (HasFatalFailure()) {
            ADD_FAILURE() << "at step " << step;
            break;
        }
    }
    gate_.shared().enforcing.store(1);
    Drain();
}

} // namespace
} // namespace weir
