#include "coalesce/request_slot.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

namespace weir
{
namespace
{

std::unique_ptr<RequestSlot> NewSlot()
{
    auto slot = std::make_unique<RequestSlot>();
    slot->word.store(0);
    return slot;
}

TEST(RequestSlot, IsTakenAndAnswered)
{
    const auto slot = NewSlot();
    EXPECT_FALSE(slot->Take(1)) << "nothing was published";
    slot->Publish();
    EXPECT_EQ(RequestState::kQueued, RequestSlot::StateOf(slot->Load()));
    EXPECT_TRUE(slot->Take(7));
    EXPECT_EQ(7u, RequestSlot::BatchOf(slot->Load()));
    EXPECT_FALSE(slot->Take(8)) << "only one worker has it";
    EXPECT_FALSE(slot->Withdraw()) << "it is too late to leave";
    slot->Finish(Verdict::kCommitted, GiveBack::kNone, 3);
    EXPECT_EQ(RequestState::kDone, RequestSlot::StateOf(slot->Load()));
    EXPECT_EQ(3u, slot->affected);
    slot->Collect();
    EXPECT_EQ(RequestState::kIdle, RequestSlot::StateOf(slot->Load()));
}

TEST(RequestSlot, WithdrawnIsNotTaken)
{
    const auto slot = NewSlot();
    slot->Publish();
    const uint64_t published = slot->Load();
    EXPECT_TRUE(slot->Withdraw());
    EXPECT_FALSE(slot->Withdraw());
    EXPECT_FALSE(slot->Take(1));
    slot->Publish();
    EXPECT_NE(published, slot->Load()) << "another request, another word";
}

class WakeWordsTest : public testing::Test
{
  protected:
    WakeWordsTest() : slot_(NewSlot())
    {
        words_.opening.store(5);
        for (std::atomic<uint32_t> &word : words_.words)
            word.store(0);
    }

    std::unique_ptr<RequestSlot> slot_;
    WakeWords words_;
    std::atomic<uint32_t> *word_ = nullptr;
    uint32_t value_ = 0;
};

TEST_F(WakeWordsTest, QueuedSleepsOnTheOpenBatch)
{
    slot_->Publish();
    ASSERT_TRUE(words_.Prepare(*slot_, &word_, &value_));
    EXPECT_EQ(&words_.words[5 % kWakeWords], word_);
    EXPECT_EQ(word_, words_.End(5));
    EXPECT_NE(value_, word_->load()) << "its end is a change of what the client sleeps on";
}

TEST_F(WakeWordsTest, TakenSleepsOnItsBatch)
{
    slot_->Publish();
    slot_->Take(5);
    words_.opening.store(6);
    ASSERT_TRUE(words_.Prepare(*slot_, &word_, &value_));
    EXPECT_EQ(&words_.words[5 % kWakeWords], word_);
}

TEST_F(WakeWordsTest, DoneDoesNotSleep)
{
    slot_->Publish();
    slot_->Take(5);
    slot_->Finish(Verdict::kNotExecuted, GiveBack::kError, 0);
    EXPECT_FALSE(words_.Prepare(*slot_, &word_, &value_));
}

// Clients and a worker, which spin on the word instead of sleeping: no wake-up is lost, every request is
// answered once.
TEST(WakeWordsThread, NobodySleepsForEver)
{
    constexpr uint32_t kClients = 6;
    constexpr uint32_t kRequests = 3000;
    std::vector<std::unique_ptr<RequestSlot>> slots;
    std::vector<std::atomic<uint64_t>> bitmap(RequestBitmap::Words(kClients));
    WakeWords wake;
    wake.opening.store(0);
    for (std::atomic<uint32_t> &word : wake.words)
        word.store(0);
    for (uint32_t i = 0; i < kClients; i++)
        slots.push_back(NewSlot());
    std::atomic<uint32_t> left{kClients};
    std::atomic<uint64_t> executed{0};

    std::thread worker([&] {
        uint32_t batch = 0;
        while (left.load() > 0) {
            uint32_t found[kClients];
            std::vector<RequestSlot *> taken;
            const uint32_t count = RequestBitmap::Drain(bitmap.data(), kClients, 0, found, kClients);
            for (uint32_t i = 0; i < count; i++)
                if (slots[found[i]]->Take(batch))
                    taken.push_back(slots[found[i]].get());
            if (taken.empty()) {
                std::this_thread::yield();
                continue;
            }
            wake.opening.store(batch + 1);
            for (RequestSlot *slot : taken) {
                executed++;
                slot->Finish(Verdict::kCommitted, GiveBack::kNone, slot->relation);
            }
            wake.End(batch++);
        }
    });
    std::vector<std::thread> clients;
    for (uint32_t id = 0; id < kClients; id++)
        clients.emplace_back([&, id] {
            RequestSlot &slot = *slots[id];
            uint64_t withdrawn = 0;
            for (uint32_t i = 0; i < kRequests; i++) {
                slot.relation = i;
                slot.Publish();
                RequestBitmap::Set(bitmap.data(), id);
                if (i % 16 == 15 && slot.Withdraw()) {
                    withdrawn++;
                    continue;
                }
                std::atomic<uint32_t> *word;
                uint32_t value;
                while (wake.Prepare(slot, &word, &value))
                    while (word->load() == value)
                        std::this_thread::yield();
                EXPECT_EQ(i, slot.affected);
                slot.Collect();
            }
            executed += withdrawn;
            left--;
        });
    for (std::thread &client : clients)
        client.join();
    worker.join();
    EXPECT_EQ(static_cast<uint64_t>(kClients) * kRequests, executed.load());
}

TEST(RequestSlot, WhoIsGoneIsNotAnswered)
{
    const auto slot = std::make_unique<RequestSlot>();
    EXPECT_FALSE(slot->Abandon()) << "idle";
    slot->Publish();
    EXPECT_FALSE(slot->Abandon()) << "queued: to be withdrawn";
    ASSERT_TRUE(slot->Take(7));
    EXPECT_TRUE(slot->Abandon());
    EXPECT_FALSE(slot->Withdraw());
    EXPECT_FALSE(slot->Take(8));
    slot->Finish(Verdict::kCommitted, GiveBack::kNone, 1);
    EXPECT_EQ(RequestState::kIdle, RequestSlot::StateOf(slot->Load()));
    slot->Publish();
    ASSERT_TRUE(slot->Take(9));
    slot->Finish(Verdict::kCommitted, GiveBack::kNone, 1);
    EXPECT_FALSE(slot->Abandon()) << "answered";
    EXPECT_EQ(RequestState::kDone, RequestSlot::StateOf(slot->Load()));
}

TEST(RequestBitmap, DrainsAllFromAnywhere)
{
    constexpr uint32_t kSlots = 200;
    std::vector<std::atomic<uint64_t>> words(RequestBitmap::Words(kSlots));
    for (const uint32_t slot : {0u, 63u, 64u, 130u, 199u})
        RequestBitmap::Set(words.data(), slot);
    RequestBitmap::Clear(words.data(), 63);
    uint32_t found[kSlots];
    EXPECT_EQ(2u, RequestBitmap::Drain(words.data(), kSlots, 70, found, 2));
    EXPECT_EQ(64u, found[0]);
    EXPECT_EQ(130u, found[1]);
    EXPECT_TRUE(RequestBitmap::Any(words.data(), kSlots));
    EXPECT_EQ(2u, RequestBitmap::Drain(words.data(), kSlots, 131, found, kSlots));
    EXPECT_EQ(199u, found[0]);
    EXPECT_EQ(0u, found[1]);
    EXPECT_FALSE(RequestBitmap::Any(words.data(), kSlots));
}

TEST(RequestBitmap, WhatFindsNoRoomStays)
{
    std::atomic<uint64_t> words[1] = {};
    for (uint32_t slot = 0; slot < 10; slot++)
        RequestBitmap::Set(words, slot);
    uint32_t found[10];
    EXPECT_EQ(4u, RequestBitmap::Drain(words, 10, 0, found, 4));
    EXPECT_EQ(6u, RequestBitmap::Drain(words, 10, 0, found, 10));
    EXPECT_EQ(4u, found[0]);
}

} // namespace
} // namespace weir
