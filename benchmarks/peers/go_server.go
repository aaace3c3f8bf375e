// An echo server in Go: a goroutine for each connection, which reads, parses and writes.
//
// The net package sets TCP_NODELAY by itself and takes the system's somaxconn as the backlog.
package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"os"
)

const (
	header    = 8
	maxPacket = 29000
	readSize  = 65536
)

// serve echoes the packets of one connection; the replies to a read's packets are one Write.
func serve(connection net.Conn) {
	defer connection.Close()
	data := make([]byte, maxPacket+readSize)
	replies := make([]byte, 0, maxPacket+readSize)
	size := 0
	for {
		count, err := connection.Read(data[size : size+readSize])
		if err != nil {
			return
		}
		size += count
		replies = replies[:0]
		offset := 0
		for size-offset >= header {
			length := int(binary.BigEndian.Uint16(data[offset:]))
			if length < header || length > maxPacket {
				return
			}
			if size-offset < length {
				break
			}
			code := binary.BigEndian.Uint16(data[offset+2:])
			crc := binary.BigEndian.Uint32(data[offset+4:])
			body := data[offset+header : offset+length]
			offset += length
			if crc32.ChecksumIEEE(body) == crc {
				replies = binary.BigEndian.AppendUint16(replies, uint16(header+len(body)))
				replies = binary.BigEndian.AppendUint16(replies, code)
				replies = binary.BigEndian.AppendUint32(replies, crc32.ChecksumIEEE(body))
				replies = append(replies, body...)
			}
		}
		size = copy(data, data[offset:size])
		if len(replies) > 0 {
			if _, err := connection.Write(replies); err != nil {
				return
			}
		}
	}
}

func main() {
	listening, err := net.Listen("tcp4", "127.0.0.1:"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		connection, err := listening.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serve(connection)
	}
}
